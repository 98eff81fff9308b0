"""A whole model, quantised to 8-bit integers, as an ONNX file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

from cleanai_ray.deploy._files import file_suffix
from cleanai_ray.deploy.int8 import to_int8
from cleanai_ray.registry import FORMATS
from cleanai_ray.storage.whole_files import replaced_whole


@FORMATS.register("onnx_int8")
@file_suffix(".int8.onnx", needs_images=True)
def export_onnx_int8(
    model: nn.Module, example_input: Tensor, path: Path, batches: Iterable[tuple[Tensor, Tensor]] = ()
) -> Path:
    """The whole model as an ONNX file in 8-bit integers, with ranges from calibration samples (cleanai-ray[onnx]).

    Weights are quantised per output channel, activations per tensor, in QDQ format. The input is called
    `images`, the output `logits`; both are float32, with a batch of any size.

    Args:
        model: The model, which is not changed.
        example_input: Images [N, ...].
        path: Where to write; weights are in the same file.
        batches: Calibration images [N, ...] with labels, which are not read.

    Returns:
        The path that was written.

    Raises:
        ArtifactError: When a package is missing, there are no images, or the model cannot be translated or quantised.
        EvaluationError: When a hook is left on the model.
    """
    path = Path(path)
    content = to_int8(model, example_input, batches)
    with replaced_whole(path) as temporary:
        temporary.write_bytes(content)
    return path
