"""Deployment of pruned models: export to files, and post-training quantisation."""

from cleanai_ray.deploy.onnx_model import OnnxModel
from cleanai_ray.deploy.quantized import Quantized, quantize, require_quantization, timing_of

__all__ = ["OnnxModel", "Quantized", "quantize", "require_quantization", "timing_of"]
