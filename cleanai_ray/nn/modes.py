"""Context managers that restore the training flags and hooks of modules; and moving batches to a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_DIMS_OF_MAPS = 4
"""Dimensions of what has a channels-last layout: feature maps, and weights of convolutions of two dimensions."""


@contextmanager
def preserved_modes(model: nn.Module) -> Iterator[None]:
    """Restore the `training` flag of every module on leaving, whatever happened to it meanwhile."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, and every module back in its own mode on leaving."""
    with preserved_modes(model):
        model.eval()
        yield


class HookOwner:
    """A context manager that removes on exit the hooks that `__enter__` of its subclass put on a model."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def to_device(value: Any, device: torch.device) -> Any:
    """Return a tensor, or lists and dicts of them, on a device; integers as int64."""
    if isinstance(value, Tensor):
        value = value.to(device, non_blocking=True)
        return value if value.is_floating_point() or value.dtype == torch.bool else value.long()
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_device(item, device) for item in value)
    return value


def restore_flags(model: nn.Module, dense: nn.Module) -> None:
    """Give a pruned model the training flags, `requires_grad` and layout of the dense one, and no gradients.

    A parameter that several layers shared in the dense model, and that each has for itself now, is as it was there.
    """
    known = dict(dense.named_parameters(remove_duplicate=False))
    for name, parameter in model.named_parameters():
        parameter.grad = None
        # A bias that repair added is like its layer's weight.
        own = known[name if name in known else f"{name.removesuffix('bias')}weight"]
        parameter.requires_grad_(own.requires_grad)
        if _is_channels_last(own) and parameter.dim() == own.dim() == _DIMS_OF_MAPS:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    training = {name: module.training for name, module in dense.named_modules()}
    for name, module in model.named_modules():
        module.training = training[name]


def _is_channels_last(value: Tensor) -> bool:
    layout = torch.channels_last
    return value.dim() == _DIMS_OF_MAPS and value.is_contiguous(memory_format=layout) and not value.is_contiguous()
