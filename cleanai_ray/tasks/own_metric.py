"""A metric of the user's own: a function of all predictions and targets, or an object with update and compute."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from cleanai_ray.errors import EvaluationError, ScoreError, TaskError
from cleanai_ray.registry import TASKS, can_merge, named_callable, num_required

LOW_IS_GOOD = " (lower is better)"
"""Follows the name of a metric of which a low value is good, in the column `metric`."""

_COLUMNS = ("loss", "merit")
"""What a training's history says of the validation besides the metric."""


class OwnMetric:
    """The user's metric.

    Attributes:
        name: `package.module:function`.
        title: The name of the score in tables.
        higher_is_better: False if a low value is good.
        merges: True if what several processes collected can be put together.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._function = named_callable(name, "task.metric")
        required = num_required(self._function)
        if inspect.isclass(self._function) and required != 0:
            raise TaskError(
                f"task.metric '{name}' is a class that needs arguments; allowed: a function without arguments that "
                "returns an object of it"
            )
        self._collects = required == 0
        shown = self._function
        if self._collects:
            shown = self.collector()
            missing = [method for method in ("update", "compute") if not callable(getattr(shown, method, None))]
            if missing:
                raise TaskError(
                    f"task.metric '{name}' returned {type(shown).__name__}, which has no {missing[0]}; allowed: a "
                    "function of (predictions, targets), or what returns an object with update and compute"
                )
        else:
            require_arguments(self._function, 2, f"task.metric '{name}'", "(predictions, targets)")
        self.merges = not self._collects or can_merge(shown)
        given = getattr(shown, "higher_is_better", True)
        self.higher_is_better = given is not False
        plain = name.partition(":")[2]
        taken = sorted({TASKS.get(task).metric_name for task in TASKS.names()})
        if plain in _COLUMNS:
            raise TaskError(
                f"task.metric '{name}' has the name of a column of history.parquet; allowed: a function that is not "
                f"called {' or '.join(_COLUMNS)}"
            )
        if plain in taken:
            raise TaskError(
                f"task.metric '{name}' has the name of a task's own metric; allowed: a function that is not called "
                f"{', '.join(taken)}"
            )
        self.title = plain if self.higher_is_better else plain + LOW_IS_GOOD

    @property
    def alone(self) -> str:
        """The metric in error messages on several processes."""
        return f"task.metric '{self.name}', whose objects have no merge_state that can put them together"

    def collector(self) -> Any:
        """Return an object with update and compute, without samples."""
        if not self._collects:
            return _Gathered(self._function)
        found = self._function()
        if hasattr(found, "sync_on_compute"):  # torchmetrics: of several processes, one may score alone
            found.sync_on_compute = found._to_sync = False
        return found

    def share_of(self, collector: Any) -> Any:
        """Return what other processes get of a collector: itself, or the batches that are gathered."""
        return collector.batches if isinstance(collector, _Gathered) else collector

    def merged(self, shares: Sequence[Any]) -> Any:
        """Return the collector of all samples, from the shares of the processes that have any, by rank.

        Raises:
            ScoreError: When the user's merge fails.
        """
        if not self._collects:
            return _Gathered(self._function, [batch for share in shares for batch in share])
        first, *others = shares
        if hasattr(first, "sync_on_compute"):
            for other in others:
                averages = _averages(first, other)
                self.called(first.merge_state, other)
                for name, value in averages.items():
                    setattr(first, name, value)
                first._update_count += other._update_count
        elif others:
            self.called(first.merge_state, others)
        return first

    def called(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function of the user's returns, for what all processes have collected.

        Raises:
            ScoreError: When it fails.
        """
        try:
            with torch.no_grad():
                return function(*arguments)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ScoreError(f"task.metric '{self.name}' failed with {type(error).__name__}: {reason}") from error

    def update(self, collector: Any, predicted: Any, targets: Any) -> None:
        """Add a batch of this process's to a collector.

        Raises:
            EvaluationError: When the user's function fails.
        """
        try:
            self.called(collector.update, predicted, targets)
        except ScoreError as error:
            raise EvaluationError(str(error)) from error

    def merit(self, value: float) -> float:
        """Return the value where high is good, else 1 / (1 + value); 0 for what is no number.

        Raises:
            ScoreError: When it is not within its bounds.
        """
        if not math.isfinite(value):
            return 0.0
        if self.higher_is_better and 0.0 <= value <= 1.0:
            return value
        if not self.higher_is_better and value >= 0.0:
            return 1.0 / (1.0 + value)
        allowed = "0 to 1, or set its attribute higher_is_better to False" if self.higher_is_better else "0 or more"
        raise ScoreError(f"task.metric '{self.name}' returned {value:g}; allowed: {allowed}")


class _Gathered:
    """Collects everything for a function of all predictions and targets."""

    def __init__(self, function: Callable[[Any, Any], Any], batches: Sequence[tuple[Any, Any]] = ()) -> None:
        self._function = function
        self.batches = list(batches)

    def update(self, predicted: Any, targets: Any) -> None:
        """Add a batch."""
        self.batches.append((predicted, targets))

    def compute(self) -> Any:
        """Return what the function returns for all."""
        predicted, targets = zip(*self.batches, strict=True)
        return self._function(_joined(predicted), _joined(targets))


def _joined(batches: Sequence[Any]) -> Any:
    """Return batches of tensors as one tensor, and of lists as one list."""
    if isinstance(batches[0], Tensor):
        return torch.cat(list(batches))
    every: Iterable[Any] = (entry for batch in batches for entry in batch)
    return list(every)


def _averages(one: Any, other: Any) -> dict[str, Tensor]:
    """Return the states of two metrics of torchmetrics that are means over updates, each weighted by its updates.

    Its `merge_state` weights them by the updates of the first alone.
    """
    if type(one).merge_state is not sys.modules["torchmetrics"].Metric.merge_state:
        return {}
    mine, theirs = one._update_count, other._update_count
    return {
        name: (mine * getattr(one, name) + theirs * getattr(other, name)) / max(1, mine + theirs)
        for name, reduce in one._reductions.items()
        if getattr(reduce, "__name__", "") == "dim_zero_mean"
    }


def require_arguments(function: Callable[..., Any], number: int, what: str, allowed: str) -> None:
    """Refuse a function that cannot be called with so many arguments.

    Args:
        function: The function.
        number: How many.
        what: The key of the study file, and its value.
        allowed: The arguments in parentheses.

    Raises:
        TaskError: When it cannot.
    """
    try:
        inspect.signature(function).bind(*range(number))
    except TypeError:
        raise TaskError(f"{what} cannot be called with {number} arguments; allowed: a function of {allowed}") from None
    except ValueError:  # of a function in C, which tells no signature
        return
