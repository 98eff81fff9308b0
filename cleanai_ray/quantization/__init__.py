"""Post-training quantisation of a pruned model: 8-bit integers by onnxruntime, or torch's bfloat16."""

from cleanai_ray.quantization.onnx_model import OnnxModel
from cleanai_ray.quantization.quantized import Quantized, quantize, require_quantization, timing_of

__all__ = ["OnnxModel", "Quantized", "quantize", "require_quantization", "timing_of"]
