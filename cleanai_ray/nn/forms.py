"""Forms of modules: everything but the weights, by which what was found out about one module is known of its like."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

_BASE = frozenset(vars(nn.Module()))
_PLAIN = (bool, int, float, str, type(None))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


class KnownForms:
    """A question whose answer depends on the form of a module alone, and the answers so far.

    Args:
        question: Returns the answer for a module, which may take long. After an error nothing is known.
    """

    def __init__(self, question: Callable[[Any], bool]) -> None:
        self._question = question
        self._answers: dict[Hashable, bool] = {}

    def __call__(self, module: nn.Module) -> bool:
        """Return the answer for a module: the one that is known for its form, if there is one."""
        form = form_of(module)
        if form is None:
            return self._question(module)
        if form not in self._answers:
            self._answers[form] = self._question(module)
        return self._answers[form]


def form_of(module: nn.Module) -> Hashable | None:
    """Return a value that is the same for modules which differ in nothing but weights; None where that cannot be told.

    It holds the classes, the attributes and the shapes of the parameters of a module and of those in it. It cannot be
    told of one with buffers, hooks, shared weights or weights without values, or whose attributes are other than
    numbers, texts and lists of these.
    """
    weights = list(module.parameters())
    shared = len(weights) != len(list(module.named_parameters(remove_duplicate=False)))
    if shared or any(True for _ in module.buffers()) or any(is_lazy(value) or value.is_meta for value in weights):
        return None
    parts: list[Hashable] = []
    for name, each in module.named_modules(remove_duplicate=False):
        own = each._parameters
        attributes = {key: _plain(value) for key, value in vars(each).items() if key not in _BASE}
        if None in attributes.values() or any(vars(each)[hooks] for hooks in _HOOKS):
            return None
        shapes = tuple((key, None if value is None else (value.shape, value.dtype)) for key, value in own.items())
        parts.append((name, type(each), type(each).forward, tuple(sorted(attributes.items())), shapes))
    return tuple(parts)


def _plain(value: Any) -> Hashable | None:
    """Return a plain value with its type, by which it can be compared; None of another."""
    if isinstance(value, _PLAIN):
        return (type(value), value)
    if isinstance(value, (list, tuple)):
        parts = [_plain(part) for part in value]
        return None if None in parts else (type(value), *parts)
    return None
