"""Modules left as they were found: their training flags, and no hook on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from torch import nn
from torch.utils.hooks import RemovableHandle


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
    """Puts hooks on a model when it is entered, in `__enter__` of its subclass, and takes them off when it is left."""

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
