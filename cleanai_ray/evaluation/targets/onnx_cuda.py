"""Onnxruntime with its CUDA provider."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.errors import EvaluationError
from cleanai_ray.evaluation.targets.base import Run, TargetBackend, in_type
from cleanai_ray.evaluation.targets.onnx_cpu import ONNX_PACKAGES, onnx_content
from cleanai_ray.registry import TARGETS

_PROVIDER = "CUDAExecutionProvider"


def to_float16(content: bytes) -> bytes:
    """Return an ONNX file with weights and activations in float16; inputs and outputs stay in float32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(onnx.load_from_string(content), keep_io_types=True).SerializeToString()


@TARGETS.register("onnxruntime_cuda")
class OnnxCudaTarget(TargetBackend):
    """Onnxruntime with its CUDA provider, in float32 or float16 (package: onnxruntime-gpu)."""

    device_types = ("cuda",)
    packages = (*ONNX_PACKAGES, ("onnxruntime", "onnxruntime-gpu"))

    @classmethod
    def require_packages(cls) -> None:
        """Check the packages, and that onnxruntime was built with CUDA.

        Raises:
            EvaluationError: When something is missing.
        """
        super().require_packages()
        import onnxruntime

        found = onnxruntime.get_available_providers()
        if _PROVIDER not in found:
            raise EvaluationError(
                f"the onnxruntime that is installed has no {_PROVIDER} (it has {', '.join(found)}): pip install "
                "onnxruntime-gpu in place of onnxruntime"
            )

    def prepare(self, model: nn.Module, example: Tensor) -> Run:
        """Return a function that runs a session whose input and output stay on the GPU."""
        import onnxruntime

        content = onnx_content(model, example, quick=self.quick)
        if self.target.dtype == "float16":
            content = to_float16(content)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        index = self.device.index or 0
        session = onnxruntime.InferenceSession(content, options, providers=[(_PROVIDER, {"device_id": index})])
        if _PROVIDER not in session.get_providers():
            raise EvaluationError(
                f"{_PROVIDER} cannot be loaded here: the CUDA and cuDNN libraries that onnxruntime-gpu needs are "
                "missing or of another version"
            )
        binding, batch = _bound(session, in_type(example, torch.float32).to(self.device).contiguous(), index)

        def run() -> object:
            session.run_with_iobinding(binding)
            return batch

        return run


def _bound(session: Any, batch: Tensor, index: int) -> tuple[Any, Tensor]:
    """Return a binding of a session's input to a batch on the GPU, and the batch, which must be kept."""
    import numpy as np

    torch.cuda.synchronize(batch.device)
    binding = session.io_binding()
    binding.bind_input(
        name=session.get_inputs()[0].name,
        device_type="cuda",
        device_id=index,
        element_type=np.float32 if batch.is_floating_point() else np.int64,
        shape=tuple(batch.shape),
        buffer_ptr=batch.data_ptr(),
    )
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda", index)
    return binding, batch
