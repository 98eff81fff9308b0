"""The precision in which a model is run while its activations are measured; sums are in float32 or better anyway."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from cleanai_ray.errors import CalibrationError

PRECISIONS = ("float32", "bfloat16")


def check_precision(precision: str) -> None:
    """Check the name of a precision.

    Raises:
        CalibrationError: When there is none of this name.
    """
    if precision not in PRECISIONS:
        raise CalibrationError(f"precision is {precision!r}; allowed: {', '.join(PRECISIONS)}")


def running_in(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a context in which a model runs in a precision; float32 leaves everything as it is.

    Under bfloat16, PyTorch's autocast chooses the operations that run in it; weights stay as they are.
    """
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


def laid_out(images: Tensor, precision: str) -> Tensor:
    """Return images in the layout that is fastest in a precision: in bfloat16, with the channels last."""
    if precision == "float32" or images.dim() != 4:
        return images
    return images.contiguous(memory_format=torch.channels_last)
