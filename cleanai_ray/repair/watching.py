"""The layers of a running model, visited where their output can still be changed: at their call, or at a later sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.nn.consumers import Consumer
from cleanai_ray.nn.modes import HookOwner, evaluation_mode
from cleanai_ray.repair.branches import Additions, Branch, find_branches


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A layer to refit.

    Attributes:
        consumer: The layer.
        branch: The way to a sum that only this layer's output and a shortcut enter; None without one.
    """

    consumer: Consumer
    branch: Branch | None = None


Visit = Callable[[str, Tensor, Tensor | None], bool]
"""(name of a layer, its input, shortcut or None) -> True if the layer's weights have changed."""


def trace_units(model: nn.Module, images: Tensor, consumers: Sequence[Consumer]) -> list[Unit]:
    """Run a model once, and return its layers in the order in which they can be refitted.

    Args:
        model: The model; it is left as it was.
        images: At least two images, [N, ...].
        consumers: The layers, from `trace_consumers`.
    """
    known = {consumer.name: consumer for consumer in consumers if consumer.num_calls == 1}
    branches = find_branches(model, images, known)
    units = {name: Unit(consumer=consumer, branch=branches.get(name)) for name, consumer in known.items()}
    order: list[str] = []

    def visit(name: str, value: Tensor, shortcut: Tensor | None) -> bool:
        order.append(name)
        return False

    with torch.no_grad(), evaluation_mode(model), visiting(model, units, visit):
        model(images)
    return [units[name] for name in order]


class visiting(HookOwner):
    """Calls `visit` for each unit: before the layer runs, or at the sum that its output enters.

    If `visit` returns True at a sum, the layer and the chain behind it run again, and the sum adds what they give.

    Args:
        model: The model.
        units: The layers, by name.
        visit: The function to call.
        outputs: Call it after the layer has run, with its output in place of its input (but not of MultiheadAttention).
    """

    def __init__(self, model: nn.Module, units: Mapping[str, Unit], visit: Visit, *, outputs: bool = False) -> None:
        super().__init__()
        self._model = model
        self._units = units
        self._visit = visit
        self._outputs = outputs
        self._pending: dict[str, tuple[Tensor, int]] = {}
        self._mode = Additions(self._add)

    def __enter__(self) -> visiting:
        for name in self._units:
            module = self._model.get_submodule(name)
            if self._outputs and not isinstance(module, nn.MultiheadAttention):
                self._handles.append(module.register_forward_hook(self._after(name)))
            else:
                self._handles.append(module.register_forward_pre_hook(self._before(name), with_kwargs=True))
        self._mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._mode.__exit__(*error)
        self._pending.clear()
        super().__exit__(*error)

    def _before(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self._mode.paused:
                return
            values = [*args, *kwargs.values()]
            if isinstance(module, nn.MultiheadAttention) and not (values[0] is values[1] is values[2]):
                return
            self._arrive(name, values[0])

        return hook

    def _after(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            if not self._mode.paused:
                self._arrive(name, output)

        return hook

    def _arrive(self, name: str, value: Tensor) -> None:
        branch = self._units[name].branch
        if branch is not None:
            self._pending[name] = (value, branch.after)
            return
        with self._mode.pause():
            self._visit(name, value, None)

    def _add(self, args: Sequence[Any]) -> None:
        for name, (value, left) in list(self._pending.items()):
            if left:
                self._pending[name] = (value, left - 1)
                continue
            del self._pending[name]
            branch = self._units[name].branch
            assert branch is not None
            module = self._model.get_submodule(name)
            with self._mode.pause():
                if self._visit(name, value, args[1 - branch.side]):
                    again = module(value)
                    for step in branch.chain:
                        again = self._model.get_submodule(step)(again)
                    args[branch.side].copy_(again)
