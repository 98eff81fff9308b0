"""TensorRT."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.errors import EvaluationError
from cleanai_ray.evaluation.targets.base import Run, in_type
from cleanai_ray.evaluation.targets.cuda_graph import GraphTarget
from cleanai_ray.evaluation.targets.onnx_cpu import ONNX_PACKAGES, onnx_content
from cleanai_ray.evaluation.targets.onnx_cuda import to_float16
from cleanai_ray.registry import TARGETS


@TARGETS.register("tensorrt")
class TensorRtTarget(GraphTarget):
    """TensorRT (version 10 or later), in float32 or float16, replayed as a CUDA graph (package: tensorrt).

    The network is strongly typed: its types are those of the ONNX file.
    """

    packages = (*ONNX_PACKAGES, ("onnxruntime", "cleanai-ray[onnx]"), ("tensorrt", "tensorrt"))

    def prepare(self, model: nn.Module, example: Tensor) -> Run:
        """Return the replay of the recorded engine."""
        content = onnx_content(model, example, quick=self.quick)
        if self.target.dtype == "float16":
            content = to_float16(content)
        batch = in_type(example, torch.float32).to(self.device).contiguous()
        engine = _built(content, tuple(batch.shape))
        context = engine.create_execution_context()
        buffers = _bind(engine, context, batch)

        def forward() -> object:
            context.execute_async_v3(torch.cuda.current_stream(self.device).cuda_stream)
            return engine, context, buffers  # kept for as long as the graph

        return self.record(forward)


def _built(content: bytes, shape: tuple[int, ...]) -> Any:
    """Return the engine of an ONNX file for one shape of its input.

    Raises:
        EvaluationError: When TensorRT cannot read the file, or cannot build an engine.
    """
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(content):
        reasons = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise EvaluationError(f"TensorRT cannot read the model: {' '.join(reasons.split())[:200]}")
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape(network.get_input(0).name, shape, shape, shape)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EvaluationError("TensorRT cannot build an engine for the model")
    return trt.Runtime(logger).deserialize_cuda_engine(plan)


def _bind(engine: Any, context: Any, batch: Tensor) -> list[Tensor]:
    """Give an execution context its input and memory for its outputs, which must be kept."""
    import tensorrt as trt

    kept = [batch]
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    for name in names:
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            context.set_input_shape(name, tuple(batch.shape))
            context.set_tensor_address(name, batch.data_ptr())
    for name in names:
        if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT:
            dtype = {trt.float32: torch.float32, trt.float16: torch.float16}[engine.get_tensor_dtype(name)]
            output = torch.empty(tuple(context.get_tensor_shape(name)), dtype=dtype, device=batch.device)
            context.set_tensor_address(name, output.data_ptr())
            kept.append(output)
    return kept
