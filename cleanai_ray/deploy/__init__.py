"""Pruned models as they leave the system: files for deployment, and post-training quantisation."""

from cleanai_ray.deploy.onnx_model import OnnxModel
from cleanai_ray.deploy.quantized import Quantized, quantize, require_quantization, timing_of

__all__ = ["OnnxModel", "Quantized", "quantize", "require_quantization", "timing_of"]
