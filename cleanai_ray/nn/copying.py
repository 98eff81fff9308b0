"""Copies of modules that keep, besides their weights, what passes have left in them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

_OWN = frozenset(vars(nn.Module()))
"""Attributes that every module has."""


def copied(module: M, memo: Mapping[int, Any] | None = None) -> M:
    """Return a deep copy of a module, also of one that keeps tensors which autograd computed, as some caches are.

    `copy.deepcopy` refuses such tensors; the copy has their values alone.

    Args:
        module: The module; it is left as it is.
        memo: What to put in place of objects, by their id.
    """
    known = dict(memo or {})
    for each in module.modules():
        for value in (*each._buffers.values(), *_own_attributes(each).values()):
            known |= {id(tensor): tensor.detach().clone() for tensor in _computed(value) if id(tensor) not in known}
    return copy.deepcopy(module, known)


@contextmanager
def leaving_no_trace(model: nn.Module) -> Iterator[None]:
    """Give every module back the attributes that it had, whatever passes through the model have kept in them."""
    before = [
        (module, {name: (value, _items(value)) for name, value in _own_attributes(module).items()})
        for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, attributes in before:
            for name in _own_attributes(module).keys() - attributes.keys():
                del vars(module)[name]
            for name, (value, items) in attributes.items():
                vars(module)[name] = value
                _restore(value, items)


def _own_attributes(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if name not in _OWN}


def _computed(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a value that autograd computed."""
    if isinstance(value, Tensor):
        if not value.is_leaf:
            yield value
    elif isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _computed(item)


def _items(value: Any) -> Any:
    return copy.copy(value) if type(value) in (dict, list) else None


def _restore(value: Any, items: Any) -> None:
    if type(value) is dict and value.keys() != items.keys():
        value.clear()
        value.update(items)
    elif type(value) is list and len(value) != len(items):
        value[:] = items
