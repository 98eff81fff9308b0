"""Rectifiers: activation functions that are flat outside an interval, and the layers whose outputs only they read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cleanai_ray.nn.modes import HookOwner, evaluation_mode
from cleanai_ray.nn.patches import matrix
from cleanai_ray.repair.branches import Additions, branch_scale, channel_scale, tensors_in
from cleanai_ray.repair.pair import ModelPair
from cleanai_ray.repair.watching import Unit

Interval = tuple[float, float]

_INTERVALS: dict[str, Interval] = {
    "relu": (0.0, math.inf),
    "relu_": (0.0, math.inf),
    "relu6": (0.0, 6.0),
    "hardswish": (-3.0, math.inf),
    "hardsigmoid": (-3.0, 3.0),
}
_BOUNDED = ("hardtanh", "hardtanh_")
"""Functions whose interval is their second and third argument."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ActiveRange:
    """The outputs of a layer that make a difference behind its rectifier.

    Attributes:
        low: Where the rectifier of each output begins to tell values apart, [outputs]; minus infinity: there is none.
        high: Where it ends to, [outputs].
    """

    low: Tensor
    high: Tensor

    def ask(self, target: Tensor, made: Tensor) -> Tensor:
        """Return what to ask of a layer: its targets, or what it makes, where the rectifier makes both the same.

        Where only the target lies outside the range, the nearest end of the range is asked for.

        Args:
            target: What the layer should make, [M, outputs].
            made: What it makes, of the same shape.
        """
        low, high = self.low.to(target), self.high.to(target)
        asked = torch.where(target < low, torch.minimum(made, low), target)
        return torch.where(target > high, torch.maximum(made, high), asked)

    def passed(self, value: Tensor) -> Tensor:
        """Return what is left of outputs, up to scale and shift, behind the rectifier."""
        return torch.minimum(torch.maximum(value, self.low.to(value)), self.high.to(value))


def find_active_ranges(models: ModelPair, images: Tensor, units: Mapping[str, Unit]) -> dict[str, ActiveRange]:
    """Run a pruned model once, and return the active range of those of its layers that a rectifier follows.

    Ranges are those of the values of `Rows`: of a layer's output, or of the sum that it enters, before batch-norm.

    Args:
        models: The models; they are left as they were.
        images: A few images, [N, ...].
        units: The layers, by name.
    """
    with torch.no_grad(), evaluation_mode(models.pruned), _RectifierTracer(models.pruned, units) as tracer:
        intervals = tracer.intervals(models.pruned(images))
    found = {name: _in_common_terms(models, units[name], interval) for name, interval in intervals.items()}
    return {name: active for name, active in found.items() if active is not None}


def _in_common_terms(models: ModelPair, unit: Unit, interval: Interval) -> ActiveRange | None:
    """Return the values for which what follows a layer gives a value in the interval."""
    consumer, branch = unit.consumer, unit.branch
    layer = models.dense.get_submodule(consumer.name)
    chain = branch.chain if branch is not None else (consumer.norm,) if consumer.norm is not None else ()
    weight = matrix(layer)
    scale = torch.ones(weight.shape[:2].numel(), dtype=torch.float64, device=weight.device)
    constant = torch.zeros_like(scale)
    if consumer.norm is not None:
        mean = models.dense.get_submodule(consumer.norm).running_mean
        assert isinstance(mean, Tensor)
        constant += mean
    for name in chain:
        norm = models.dense.get_submodule(name)
        if not isinstance(norm, _BatchNorm):
            return None
        factor = channel_scale(norm)
        assert factor is not None
        assert norm.running_mean is not None
        scale = scale * factor
        constant = (constant - norm.running_mean) * factor + (0 if norm.bias is None else norm.bias)
    whole = branch_scale(models.dense, branch) if branch is not None else scale
    known = (torch.as_tensor(whole, device=scale.device).isfinite() & (scale != 0)).expand_as(scale)
    ends = torch.stack([(end - constant) / torch.where(known, scale, 1.0) for end in interval])
    low, high = torch.where(known, ends.amin(0), -torch.inf), torch.where(known, ends.amax(0), torch.inf)
    kept = models.kept_outputs.get(consumer.name)
    if kept is not None:
        index = torch.as_tensor(kept, device=low.device)
        low, high = low[index], high[index]
    return ActiveRange(low=low, high=high)


class _RectifierTracer(HookOwner):
    """Finds, during one forward pass, which functions read the layers' outputs, or the sums that these enter."""

    def __init__(self, model: nn.Module, units: Mapping[str, Unit]) -> None:
        super().__init__()
        self._model = model
        self._units = units
        self._left: dict[str, int] = {}
        self._entering: list[str] = []
        self._ends: dict[int, tuple[str, Tensor, int]] = {}
        self._intervals: dict[str, set[Interval | None]] = {}
        self._mode = Additions(self._add, self._read)

    def __enter__(self) -> _RectifierTracer:
        for name, unit in self._units.items():
            module = self._model.get_submodule(name)
            if isinstance(module, nn.MultiheadAttention):
                continue
            if unit.branch is not None:
                self._handles.append(module.register_forward_pre_hook(self._await(name, unit.branch.after)))
            else:
                last = self._model.get_submodule(unit.consumer.norm or name)
                self._handles.append(last.register_forward_hook(self._after(name)))
        self._mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._mode.__exit__(*error)
        super().__exit__(*error)

    def _await(self, name: str, additions: int) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            self._left[name] = additions

        return hook

    def _after(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                with self._mode.pause():
                    self._ends[id(output)] = (name, output, output._version)

        return hook

    def _add(self, args: Sequence[Any]) -> None:
        self._entering = [name for name, left in self._left.items() if not left]
        self._left = {name: left - 1 for name, left in self._left.items() if left}

    def _read(self, function: str, args: Sequence[Any], result: Any, addition: bool) -> None:
        if next(tensors_in([result]), None) is None:  # A question (its shape, its type), and no computation.
            return
        for value in tensors_in(args):
            name, end, version = self._ends.get(id(value), ("", value, -1))
            if name and (result is end or end._version == version):
                self._intervals.setdefault(name, set()).add(_interval(function, args))
                if result is end:
                    del self._ends[id(value)]
        if addition and self._entering:
            self._ends[id(result)] = (self._entering[-1], result, result._version)
            self._entering = []

    def intervals(self, output: Any) -> dict[str, Interval]:
        """Return the interval of each layer that only rectifiers of one interval read.

        Args:
            output: The model's output.
        """
        for value in tensors_in([output]):
            if id(value) in self._ends:
                self._intervals.setdefault(self._ends[id(value)][0], set()).add(None)
        found = {}
        for name, intervals in self._intervals.items():
            (first, *others) = intervals
            if first is not None and not others:
                found[name] = first
        return found


def _interval(function: str, args: Sequence[Any]) -> Interval | None:
    """Return outside which interval of its argument a function is flat; None: nowhere."""
    if function in _BOUNDED and len(args) > 2:
        return float(args[1]), float(args[2])
    return _INTERVALS.get(function)
