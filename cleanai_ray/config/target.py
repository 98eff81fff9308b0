"""The target: what runs the finished model, and how."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from cleanai_ray.config.section import Section

TargetBackendName = Literal["torch", "torch_compile", "cuda_graph", "onnxruntime", "onnxruntime_cuda", "tensorrt"]
Dtype = Literal["float32", "bfloat16", "float16", "int8"]
Layout = Literal["contiguous", "channels_last"]

_FLOATS: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")
_DTYPES: dict[str, tuple[Dtype, ...]] = {
    "torch": _FLOATS,
    "torch_compile": _FLOATS,
    "cuda_graph": _FLOATS,
    "onnxruntime": ("float32", "int8"),
    "onnxruntime_cuda": ("float32", "float16"),
    "tensorrt": ("float32", "float16"),
}
_TAKES_CHANNELS_LAST = ("torch", "torch_compile", "cuda_graph")


class TargetSection(Section):
    """What runs the finished model: latency is measured, predicted and promised in it."""

    backend: TargetBackendName = Field(
        description="torch, torch_compile or onnxruntime (extra: cleanai-ray[onnx]); on GPUs also cuda_graph, "
        "onnxruntime_cuda (package onnxruntime-gpu) or tensorrt (package tensorrt)."
    )
    dtype: Dtype = Field("float32", description="What weights and activations are held in; int8 for onnxruntime alone.")
    layout: Layout = Field(
        "contiguous", description="Memory layout of images; channels_last for torch, torch_compile and cuda_graph."
    )
    batch_size: PositiveInt = Field(1, description="Images per forward pass.")
    threads: PositiveInt = Field(1, description="CPU threads within an operation; without effect on GPUs.")

    multiple: PositiveInt | None = Field(
        None, description="Widths that it likes are multiples of this, for pruning.round_to: auto; null: measured."
    )

    @model_validator(mode="after")
    def _check(self) -> TargetSection:
        allowed = _DTYPES[self.backend]
        if self.dtype not in allowed:
            raise ValueError(
                f"evaluation.target.dtype is {self.dtype}, which {self.backend} is not timed in; allowed with "
                f"backend {self.backend}: {', '.join(allowed)}"
            )
        if self.layout == "channels_last" and self.backend not in _TAKES_CHANNELS_LAST:
            raise ValueError(
                f"evaluation.target.layout is channels_last, and {self.backend} lays images out itself; allowed with "
                f"backend {self.backend}: contiguous"
            )
        return self

    @property
    def label(self) -> str:
        """The target in a few words, as tables name it: `onnxruntime float32, batch 1, 1 thread`."""
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}"
        return f"{self.engine}, batch {self.batch_size}, {threads}"

    @property
    def engine(self) -> str:
        """What computes, without how much at once: `torch float16 channels_last`."""
        return f"{self.backend} {self.dtype}{' channels_last' if self.layout == 'channels_last' else ''}"
