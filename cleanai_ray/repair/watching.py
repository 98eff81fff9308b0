"""The layers of a running model, visited where their output can still be changed: at their call, or at a later sum."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from cleanai_ray.nn.consumers import Consumer
from cleanai_ray.nn.modes import HookOwner, evaluation_mode
from cleanai_ray.nn.patches import matrix

_SWITCHED_OFF = 1e-3
_ADDITIONS = ("add", "add_", "__add__", "__radd__", "__iadd__")


@dataclass(frozen=True, kw_only=True)
class Branch:
    """The way from a layer's output to a sum with a shortcut.

    Attributes:
        chain: Modules in between, which scale and shift each channel by itself: batch-norm, layer scale.
        after: Additions of the model between the layer's call and the sum.
        side: 0 or 1: the operand of the sum that the branch is.
    """

    chain: tuple[str, ...]
    after: int
    side: int


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


class _Additions(TorchFunctionMode):
    """Calls `before(function arguments)` before every addition, and nothing while it is paused."""

    def __init__(
        self, before: Callable[[Sequence[Any]], None], other: Callable[[Any, Any], None] | None = None
    ) -> None:
        super().__init__()
        self._before = before
        self._other = other
        self.paused = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        addition = getattr(func, "__name__", "") in _ADDITIONS and len(args) == 2 and not kwargs
        if addition:
            self._before(args)
        result = func(*args, **kwargs)
        if self._other is not None and not addition:
            self._other(args, result)
        return result

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Let everything within pass unseen."""
        was, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = was


@dataclass
class _End:
    """The present end of a branch while it is traced."""

    name: str
    chain: tuple[str, ...]
    value: Tensor
    version: int
    reads: int = 0


class _BranchTracer(HookOwner):
    """Finds, during one forward pass, the sums that layers' outputs enter."""

    def __init__(self, model: nn.Module, consumers: Mapping[str, Consumer]) -> None:
        super().__init__()
        self._model = model
        self._consumers = consumers
        self._ends: dict[int, _End] = {}
        self._since: dict[str, int] = {}
        self._found: dict[str, list[tuple[int, Branch]]] = {}
        self._number = 0
        self.mode = _Additions(self._add, self._read)

    def __enter__(self) -> _BranchTracer:
        for name, module in self._model.named_modules():
            if name in self._consumers:
                self._handles.append(module.register_forward_pre_hook(self._start(name)))
            if name:
                self._handles.append(module.register_forward_hook(self._after(name)))
        self.mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.mode.__exit__(*error)
        super().__exit__(*error)

    def _start(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            self._since[name] = 0

        return hook

    def _after(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                return
            if name in self._consumers and not isinstance(module, nn.MultiheadAttention):
                self._ends[id(output)] = _End(name, (), output, output._version)
                return
            end = self._ends.get(id(args[0])) if args and isinstance(args[0], Tensor) else None
            with self.mode.pause():
                scales = channel_scale(module) is not None
            if end is not None and output is not args[0] and scales:
                self._ends[id(output)] = _End(end.name, (*end.chain, name), output, output._version)

        return hook

    def _read(self, args: Any, result: Any) -> None:
        if next(_tensors([result]), None) is None:  # A question (its shape, its type), and no computation.
            return
        for value in _tensors(args):
            end = self._ends.get(id(value))
            if end is not None and (result is not value or value._version != end.version):
                end.reads += 1

    def _add(self, args: Sequence[Any]) -> None:
        for side in (0, 1):
            end, other = self._ends.get(id(args[side])), args[1 - side]
            if end is None:
                continue
            if not isinstance(other, Tensor) or other.shape != end.value.shape or end.value._version != end.version:
                end.reads += 1
                continue
            branch = Branch(chain=end.chain, after=self._since[end.name], side=side)
            self._found.setdefault(end.name, []).append((self._number, branch))
        self._number += 1
        for name in self._since:
            self._since[name] += 1

    def branches(self) -> dict[str, Branch]:
        """Return the branch of each layer whose output enters one sum and nothing else.

        Of two layers that enter the same sum, it is the one with the larger kernel: the other is its shortcut.
        """
        reads: dict[str, int] = {}
        for end in self._ends.values():
            reads[end.name] = reads.get(end.name, 0) + end.reads
        best: dict[int, tuple[int, str, Branch]] = {}
        for name, sums in self._found.items():
            ((number, branch), *others) = sums
            # Every module of the chain reads the branch once; the sum is not counted.
            if others or reads[name] != len(branch.chain):
                continue
            size = matrix(self._model.get_submodule(name)).shape[2]
            if number not in best or size > best[number][0]:
                best[number] = (size, name, branch)
        return {name: branch for _, name, branch in best.values()}


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def channel_scale(module: nn.Module) -> Tensor | None:
    """Return the factor by which a module multiplies each channel, [C], if it does only that and adds constants."""
    if isinstance(module, _BatchNorm) and module.running_var is not None:
        scale = (module.running_var + module.eps).rsqrt()
        return scale if module.weight is None else scale * module.weight.detach()
    gamma = getattr(module, "gamma", None)
    if type(module).__name__ == "LayerScale" and isinstance(gamma, Tensor) and gamma.dim() == 1:
        return gamma.detach()
    return None


def branch_scale(model: nn.Module, branch: Branch) -> Tensor | float:
    """Return the factor of a branch's channels, [C] or 1; infinity for channels that it all but switches off."""
    scale: Tensor | float = 1.0
    for name in branch.chain:
        factor = channel_scale(model.get_submodule(name))
        assert factor is not None, "only modules that scale channels are in a chain"
        scale = scale * factor
    if isinstance(scale, Tensor):
        scale = torch.where(scale.abs() <= _SWITCHED_OFF * scale.abs().max(), torch.inf, scale)
    return scale


def trace_units(model: nn.Module, images: Tensor, consumers: Sequence[Consumer]) -> list[Unit]:
    """Run a model once, and return its layers in the order in which they can be refitted.

    Args:
        model: The model; it is left as it was.
        images: A few images, [N, ...].
        consumers: The layers, from `trace_consumers`.
    """
    known = {consumer.name: consumer for consumer in consumers if consumer.num_calls == 1}
    with torch.no_grad(), evaluation_mode(model), _BranchTracer(model, known) as tracer:
        model(images)
    branches = tracer.branches()
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
    """

    def __init__(self, model: nn.Module, units: Mapping[str, Unit], visit: Visit) -> None:
        super().__init__()
        self._model = model
        self._units = units
        self._visit = visit
        self._pending: dict[str, tuple[Tensor, int]] = {}
        self._mode = _Additions(self._add)

    def __enter__(self) -> visiting:
        for name in self._units:
            module = self._model.get_submodule(name)
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
            branch = self._units[name].branch
            if branch is not None:
                self._pending[name] = (values[0], branch.after)
                return
            with self._mode.pause():
                self._visit(name, values[0], None)

        return hook

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
