"""Branches: the ways from layers' outputs to sums with a shortcut, found in one forward pass of a model."""

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


class Additions(TorchFunctionMode):
    """Calls `before(arguments)` before every addition, and nothing while it is paused.

    `after(name of the function, arguments, result, whether it was an addition)` is called after every function.
    """

    def __init__(
        self,
        before: Callable[[Sequence[Any]], None],
        after: Callable[[str, Sequence[Any], Any, bool], None] | None = None,
    ) -> None:
        super().__init__()
        self._before = before
        self._after = after
        self.paused = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        addition = name in _ADDITIONS and len(args) == 2 and not kwargs
        if addition:
            self._before(args)
        result = func(*args, **kwargs)
        if self._after is not None:
            self._after(name, [*args, *kwargs.values()], result, addition)
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
        self._past: list[_End] = []
        self._since: dict[str, int] = {}
        self._found: dict[str, list[tuple[int, Branch]]] = {}
        self._number = 0
        self.mode = Additions(self._add, self._read)

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

    def _read(self, function: str, args: Sequence[Any], result: Any, addition: bool) -> None:
        if addition:
            if result is args[0] and id(result) in self._ends:  # The tensor is the sum now.
                self._past.append(self._ends.pop(id(result)))
            return
        if next(tensors_in([result]), None) is None:  # A question (its shape, its type), and no computation.
            return
        for value in tensors_in(args):
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

    def branches(self, output: Any) -> dict[str, Branch]:
        """Return the branch of each layer whose output enters one sum and nothing else.

        Of two layers that enter the same sum, it is the one with the larger kernel: the other is its shortcut.

        Args:
            output: The model's output.
        """
        for value in tensors_in([output]):
            if id(value) in self._ends:
                self._ends[id(value)].reads += 1
        reads: dict[str, int] = {}
        for end in [*self._ends.values(), *self._past]:
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


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Yield the tensors among some values, and in lists and dicts of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(value)
        elif isinstance(value, dict):
            yield from tensors_in(value.values())


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


def find_branches(model: nn.Module, images: Tensor, consumers: Mapping[str, Consumer]) -> dict[str, Branch]:
    """Run a model once, and return the branches of those of its layers that have one, by name.

    Args:
        model: The model; it is left as it was.
        images: At least two images, [N, ...]: of one alone, a constant (a position embedding) might be a shortcut.
        consumers: The layers.
    """
    with torch.no_grad(), evaluation_mode(model), _BranchTracer(model, consumers) as tracer:
        return tracer.branches(model(images))
