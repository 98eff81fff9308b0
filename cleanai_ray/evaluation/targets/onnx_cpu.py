"""Onnxruntime on the CPU."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from cleanai_ray.deploy._files import private_copy, quiet
from cleanai_ray.deploy.int8 import quantize_file
from cleanai_ray.deploy.onnx import open_session, to_onnx
from cleanai_ray.deploy.onnx_model import OnnxModel
from cleanai_ray.errors import ArtifactError, EvaluationError
from cleanai_ray.evaluation.targets.base import Run, TargetBackend, in_type
from cleanai_ray.registry import TARGETS

ONNX_PACKAGES = tuple((name, "cleanai-ray[onnx]") for name in ("onnx", "onnxscript"))


def onnx_content(model: nn.Module, example: Tensor, dtype: str = "float32", *, quick: bool = False) -> bytes:
    """Return a model as the content of an ONNX file, in float32 or int8.

    For int8, ranges come from the example: they do not change the time, which is all that such a file is for. A model
    that is an ONNX file already is left as it is.

    Args:
        model: The model.
        example: Images [N, ...].
        dtype: `float32` or `int8`.
        quick: True to try torch's older exporter first, which takes an eighth of the time and writes a file that is as
            fast, but for one batch size alone.

    Raises:
        EvaluationError: When the model cannot be translated or quantised.
    """
    if isinstance(model, OnnxModel):
        return model.content
    batch = in_type(example, torch.float32).cpu().contiguous()
    try:
        content = (_quickly(model, batch) if quick else None) or to_onnx(model, batch)
        return quantize_file(content, iter([batch])) if dtype == "int8" else content
    except ArtifactError as error:
        raise EvaluationError(str(error)) from error


def _quickly(model: nn.Module, batch: Tensor) -> bytes | None:
    """Return the file of torch's older exporter; None where it cannot translate the model, or is no longer there."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            with quiet():
                torch.onnx.export(private_copy(model), (batch,), path, dynamo=False, input_names=["images"])
        except Exception:
            return None
        return path.read_bytes()


@TARGETS.register("onnxruntime")
class OnnxCpuTarget(TargetBackend):
    """Onnxruntime on the CPU, in float32 or int8 (extra: cleanai-ray[onnx])."""

    device_types = ("cpu",)
    packages = (*ONNX_PACKAGES, ("onnxruntime", "cleanai-ray[onnx]"))

    def translated(self, model: nn.Module, example: Tensor) -> nn.Module:
        """Return a model as an ONNX file that takes any batch size."""
        if isinstance(model, OnnxModel):
            return model
        return OnnxModel(onnx_content(model, example, self.target.dtype), threads=self.target.threads)

    def prepare(self, model: nn.Module, example: Tensor) -> Run:
        """Return a function that runs a session on the batch."""
        content = onnx_content(model, example, self.target.dtype, quick=self.quick)
        forward = open_session(content, threads=self.target.threads)
        batch = in_type(example, torch.float32).cpu().contiguous()
        return lambda: forward(batch)
