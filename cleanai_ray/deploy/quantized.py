"""A quantised model: the module that runs, and the file to deploy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cleanai_ray.config.evaluation import LatencySection
from cleanai_ray.config.sweep import Quantization
from cleanai_ray.deploy.bfloat16 import Bfloat16Model
from cleanai_ray.deploy.int8 import to_int8
from cleanai_ray.deploy.onnx import require_packages
from cleanai_ray.deploy.onnx_model import OnnxModel
from cleanai_ray.errors import ArtifactError, EvaluationError
from cleanai_ray.nn.weights import safetensors_bytes

FILES = {"int8": "int8.onnx", "bf16": "weights.bf16.safetensors"}
"""The name of each quantisation's file, in the folder of a trial's model."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Quantized:
    """A quantised model.

    Attributes:
        model: Maps images [N, ...] to logits [N, classes], both float32, as the file does.
        file: Name of the file.
        content: Its content: an ONNX file (int8), or the weights in bfloat16 (bf16).
    """

    model: nn.Module
    file: str
    content: bytes


def require_quantization(names: Iterable[str]) -> None:
    """Check that the packages that quantisations need are installed.

    Raises:
        EvaluationError: When one is missing; the message names it.
    """
    if "int8" in names:
        try:
            require_packages()
        except ArtifactError as error:
            raise EvaluationError(f"sweep.quantization has int8: {error}") from error


def quantize(
    name: Quantization, model: nn.Module, example_input: Tensor, batches: Iterable[tuple[Tensor, Tensor]]
) -> Quantized:
    """Quantise a model.

    Args:
        name: `int8` or `bf16`.
        model: The model, which is not changed.
        example_input: Images [N, ...].
        batches: Calibration images with labels. Only int8 reads the images; the labels are never read.

    Raises:
        ArtifactError: When a package is missing, or the model cannot be quantised.
        EvaluationError: When a hook is left on the model.
    """
    if name == "int8":
        content = to_int8(model, example_input, batches)
        return Quantized(model=OnnxModel(content, threads=torch.get_num_threads()), file=FILES[name], content=content)
    assert name == "bf16", name
    cast = Bfloat16Model(model)
    return Quantized(model=cast, file=FILES[name], content=safetensors_bytes(cast.model))


def timing_of(name: Quantization, section: LatencySection) -> LatencySection:
    """Return the settings for timing a trial, with only the back ends that can run its model.

    The dense model is timed with the same back end, so that a speed-up is due to pruning and quantisation and not to
    the back end. Only onnxruntime runs int8, and it does not run bfloat16 on CPUs.
    """
    backends = section.backends
    if name == "int8":
        backends = ("onnxruntime",)
    elif name == "bf16":
        backends = tuple(backend for backend in backends if backend != "onnxruntime") or ("eager",)
    return section.model_copy(update={"backends": backends})
