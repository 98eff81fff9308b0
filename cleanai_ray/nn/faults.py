"""Errors of the hardware: memory that ran out, and a GPU that can no longer be used by this process."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import torch

_OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "_status_alloc_failed",
)
_DEVICE_FAULTS = (
    "cuda error",
    "device-side assert",
    "illegal memory access",
    "illegal address",
    "unspecified launch failure",
    "cudnn error",
    "cudnn_status_",
    "cublas_status_",
    "cusolver_status_",
    "cufft_",
)
"""What torch's messages hold when CUDA, or a library that runs on it, fails."""

_ACCELERATOR_ERROR: type[BaseException] | tuple[()] = getattr(torch, "AcceleratorError", ())


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory of the device or of the machine ran out; it can be tried again."""
    return any(_ran_out(cause) for cause in _causes(error))


def is_device_fault(error: BaseException) -> bool:
    """Return whether CUDA failed: until the process ends, everything that it tries on the GPU may fail as well.

    Memory that ran out is no such fault.
    """
    return not is_out_of_memory(error) and any(_is_fault(cause) for cause in _causes(error))


def release_memory(device: torch.device | str = "cuda") -> None:
    """Free what nothing refers to any more, and give cached blocks of a GPU back."""
    gc.collect()
    if torch.device(device).type == "cuda" and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, and the errors that it was raised from."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _ran_out(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def _is_fault(error: BaseException) -> bool:
    if isinstance(error, _ACCELERATOR_ERROR):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _DEVICE_FAULTS)
