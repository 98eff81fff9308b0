"""Onnxruntime on the CPU."""

from __future__ import annotations

from torch import Tensor, nn

from cleanai_ray.deploy.int8 import to_int8
from cleanai_ray.deploy.onnx import open_session, to_onnx
from cleanai_ray.deploy.onnx_model import OnnxModel
from cleanai_ray.errors import ArtifactError, EvaluationError
from cleanai_ray.evaluation.targets.base import FIELD, Run, TargetBackend
from cleanai_ray.registry import TARGETS

ONNX_PACKAGES = tuple((name, "cleanai-ray[onnx]") for name in ("onnx", "onnxscript"))


def onnx_content(model: nn.Module, example: Tensor, dtype: str = "float32") -> bytes:
    """Return a model as the content of an ONNX file, in float32 or int8.

    For int8, ranges come from the example: they do not change the time, which is all that such a file is for. A model
    that is an ONNX file already is left as it is.

    Raises:
        EvaluationError: When the model cannot be translated or quantised.
    """
    if isinstance(model, OnnxModel):
        return model.content
    batch = example.detach().float().cpu().contiguous()
    try:
        if dtype == "int8":
            return to_int8(model, batch, [(batch, batch[:, :0])])
        return to_onnx(model, batch)
    except ArtifactError as error:
        raise EvaluationError(f"{FIELD}: {error}") from error


@TARGETS.register("onnxruntime")
class OnnxCpuTarget(TargetBackend):
    """Onnxruntime on the CPU, in float32 or int8 (extra: cleanai-ray[onnx])."""

    device_types = ("cpu",)
    packages = (*ONNX_PACKAGES, ("onnxruntime", "cleanai-ray[onnx]"))

    def prepare(self, model: nn.Module, example: Tensor) -> Run:
        """Return a function that runs a session on the batch."""
        forward = open_session(onnx_content(model, example, self.target.dtype), threads=self.target.threads)
        batch = example.detach().float().cpu().contiguous()
        return lambda: forward(batch)
