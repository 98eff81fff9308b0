"""A whole model as an ONNX file."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
from torch import Tensor, nn

from cleanai_ray.errors import ArtifactError
from cleanai_ray.export._files import check_batch, file_suffix, private_copy, quiet, replaced_whole, require_same_output
from cleanai_ray.export.torch_export import trace
from cleanai_ray.registry import FORMATS

_REQUIRED = ("onnx", "onnxscript", "onnxruntime")


def _require_packages() -> None:
    for package in _REQUIRED:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ArtifactError(
                f"format onnx needs the package {package}, which is not installed: pip install cleanai-ray[onnx]"
            ) from error


def _to_onnx(model: nn.Module, example_input: Tensor) -> bytes:
    program = trace(model, example_input)
    try:
        exported = torch.onnx.export(
            program,
            (),
            input_names=["images"],
            output_names=["logits"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        assert exported is not None
        return exported.model_proto.SerializeToString()
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ArtifactError(f"{type(model).__name__} cannot be translated to ONNX: {reason}") from error


def _run(content: bytes, batch: Tensor) -> Tensor:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
    return torch.from_numpy(output)


@FORMATS.register("onnx")
@file_suffix(".onnx")
def export_onnx(model: nn.Module, example_input: Tensor, path: Path) -> Path:
    """The whole model as an ONNX file, with a batch of any size (extra: cleanai-ray[onnx]).

    Before anything is written, onnxruntime's output is compared with torch's on a random batch. The input is called
    `images`, the output `logits`.

    Args:
        model: The model, which is not changed.
        example_input: Images [N, ...].
        path: Where to write; weights are in the same file.

    Returns:
        The path that was written.

    Raises:
        ArtifactError: When a package is missing, the model cannot be translated, or onnxruntime computes something
            else.
        EvaluationError: When a hook is left on the model.
    """
    _require_packages()
    path = Path(path)
    model = private_copy(model)
    batch = check_batch(example_input)
    with quiet():
        content = _to_onnx(model, example_input)
    with torch.no_grad():
        require_same_output(model(batch), _run(content, batch), "onnx")
    with replaced_whole(path) as temporary:
        temporary.write_bytes(content)
    return path
