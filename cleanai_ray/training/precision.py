"""The precision in which training computes: autocast, and the gradient scaler that float16 needs."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch

from cleanai_ray.config.finetune import FineTuneSection
from cleanai_ray.training.context import TrainingError


class Precision:
    """The precision of a training on a device.

    On CUDA, `auto` is bfloat16 where the card has it, which needs no gradient scaler; on older cards it is float16 with
    one. On CPUs, `auto` is float32.

    Args:
        section: Its `precision`.
        device: Where training computes.

    Attributes:
        dtype: The type of autocast; None for float32.
        scaler: Scales the loss for float16, and does nothing for other types.

    Raises:
        TrainingError: When bfloat16 is asked for and the card has none.
    """

    def __init__(self, section: FineTuneSection, device: torch.device) -> None:
        self._device = device
        self.dtype = _dtype(section.precision, device)
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.dtype == torch.float16)

    def autocast(self) -> AbstractContextManager:
        """Return the context for forward pass and loss."""
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, dtype=self.dtype)


def _dtype(precision: str, device: torch.device) -> torch.dtype | None:
    is_cuda = device.type == "cuda"
    has_bfloat16 = not is_cuda or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bfloat16" and not has_bfloat16:
        raise TrainingError(
            f"finetune.precision is 'bfloat16', which {torch.cuda.get_device_name(device)} lacks; "
            "allowed: auto or float32"
        )
    if precision == "bfloat16" or (precision == "auto" and is_cuda):
        return torch.bfloat16 if has_bfloat16 else torch.float16
    return None
