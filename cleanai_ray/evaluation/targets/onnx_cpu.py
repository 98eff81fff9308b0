"""Onnxruntime on the CPU."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from cleanai_ray.deploy._files import private_copy, quiet
from cleanai_ray.deploy.int8 import to_int8
from cleanai_ray.deploy.onnx import open_session, to_onnx
from cleanai_ray.deploy.onnx_model import OnnxModel
from cleanai_ray.errors import ArtifactError, EvaluationError
from cleanai_ray.evaluation.targets.base import FIELD, Run, TargetBackend
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
            fast, but for one batch size alone; float32 only.

    Raises:
        EvaluationError: When the model cannot be translated or quantised.
    """
    if isinstance(model, OnnxModel):
        return model.content
    batch = example.detach().float().cpu().contiguous()
    try:
        if dtype == "int8":
            return to_int8(model, batch, [(batch, batch[:, :0])])
        return (_quickly(model, batch) if quick else None) or to_onnx(model, batch)
    except ArtifactError as error:
        raise EvaluationError(f"{FIELD}: {error}") from error


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

    def prepare(self, model: nn.Module, example: Tensor) -> Run:
        """Return a function that runs a session on the batch."""
        content = onnx_content(model, example, self.target.dtype, quick=self.quick)
        forward = open_session(content, threads=self.target.threads)
        batch = example.detach().float().cpu().contiguous()
        return lambda: forward(batch)
