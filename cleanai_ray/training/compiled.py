"""Training of a compiled model, or of the model itself where it cannot be compiled."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cleanai_ray.nn.faults import is_device_fault, is_out_of_memory
from cleanai_ray.nn.notices import notice

_LINES = 2
"""Lines of a compiler's error that say what it is; the others say how to look for it."""


def compiled(model: nn.Module, choice: bool | str) -> nn.Module:
    """Return a model compiled by `torch.compile`, or the model itself where that fails or is not asked for.

    Args:
        model: The model; weights and state dictionary stay its own.
        choice: `finetune.compile`: False, True, or a mode of `torch.compile`.
    """
    if choice is False:
        return model
    try:
        found: Any = torch.compile(model, mode=None if choice is True else str(choice))
        return found
    except Exception as error:
        tell_why_not(error)
        return model


def tell_why_not(error: Exception) -> None:
    """Give a notice that the model trains without being compiled."""
    reason = " ".join(" ".join(str(error).strip().splitlines()[:_LINES]).split())
    notice(f"finetune.compile: the model trains without being compiled, since {type(error).__name__}: {reason}")


def is_of_compiler(error: Exception) -> bool:
    """Return whether an error of the first step of a compiled model may be the compiler's: the hardware's is not."""
    return not (is_out_of_memory(error) or is_device_fault(error))
