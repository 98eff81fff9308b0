"""Static quantisation to 8-bit integers by onnxruntime."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from cleanai_ray.deploy._files import quiet
from cleanai_ray.deploy.onnx import compact, open_session, require_packages, shorten_names, to_onnx
from cleanai_ray.errors import ArtifactError


def to_int8(model: nn.Module, example_input: Tensor, batches: Iterable[tuple[Tensor, Tensor]]) -> bytes:
    """Quantise a model to 8-bit integers, and return it as the content of an ONNX file with a batch of any size.

    Weights have a scale per output channel, activations one per tensor, which spans the values that the calibration
    images produce. Weights use only 7 of their 8 bits: x86 processors without VNNI instructions add two 8-bit products
    in 16 bits, which would saturate, and the same file would compute different results on different processors.

    Args:
        model: The model, which is not changed.
        example_input: Images [N, ...].
        batches: Calibration images [N, ...] with labels, which are not read.

    Raises:
        ArtifactError: When a package is missing, there are no images, or the model cannot be translated or quantised.
        EvaluationError: When a hook is left on the model.
    """
    require_packages()
    images = (images.detach().cpu() for images, _ in batches)
    first = next(images, None)
    if first is None:
        raise ArtifactError("quantisation to int8 needs calibration images, and the batches hold 0")
    content = quantize_file(to_onnx(model, example_input), itertools.chain([first], images))
    if not np.isfinite(open_session(content)(first)).all():
        raise ArtifactError(f"{type(model).__name__}, quantised to int8, returns values that are not finite")
    return content


def quantize_file(content: bytes, images: Iterator[Tensor]) -> bytes:
    """Quantise the content of an ONNX file, as `to_int8` says.

    Args:
        content: An ONNX file whose input is called `images`.
        images: Calibration images [N, ...], of a batch size that the file takes; at least one batch.

    Raises:
        ArtifactError: When the model cannot be quantised.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """Hands calibration images to onnxruntime, which insists on a subclass of its own."""

        def get_next(self) -> dict[str, Any] | None:
            batch = next(images, None)
            return None if batch is None else {"images": batch.numpy()}

    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder) / "int8.onnx"
        try:
            quantize_static(
                onnx.load_from_string(content),
                path,
                Reader(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except (ValueError, RuntimeError, NotImplementedError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ArtifactError(f"onnxruntime cannot quantise the model to int8: {reason}") from error
        return shorten_names(compact(onnx.load(path))).SerializeToString()
