"""A task with a loss or a metric of the user's own, which a study file names as `package.module:function`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.errors import EvaluationError, TaskError
from cleanai_ray.nn.modes import to_device
from cleanai_ray.nn.view import as_model, own_forward
from cleanai_ray.registry import TASKS, named_callable
from cleanai_ray.tasks.base import Reduce, Scorer, Task, find_task
from cleanai_ray.tasks.score import TaskScore

LOW_IS_GOOD = " (lower is better)"
"""Follows the name of a metric of which a low value is good, in the column `metric`."""

_COLUMNS = ("loss", "merit")
"""What a training's history says of the validation besides the metric."""


def task_with(name: str, loss: str | None = None, metric: str | None = None) -> Task:
    """Return a task, with a loss or a metric of the user's own where one is named.

    Args:
        name: The name of the task.
        loss: `package.module:function`. It is called with the outputs of a model in training mode and the targets of a
            batch, and returns the mean loss, a scalar.
        metric: `package.module:function`. A function of two arguments is called with the predictions for all samples
            (what `Task.predict` returns, on the CPU) and with all targets; it returns a number. A class or function
            without arguments returns a collector: `update(predictions, targets)` is called for each batch, and
            `compute()` returns the number. The number is from 0 to 1, a high one good; or any number from 0, a low one
            good, where the function or collector has the attribute `higher_is_better = False`.

    Raises:
        RegistryError: When the task is unknown.
        StudyError: When a function cannot be imported.
        TaskError: When a function cannot be called so, or has the name of a metric of a task, `loss` or `merit`.
    """
    kind = type(find_task(name))
    attributes: dict[str, Any] = {}
    if loss is not None:
        function = named_callable(loss, "task.loss")
        _require_arguments(function, 2, f"task.loss '{loss}'", "(outputs, targets)")
        attributes |= {"own_loss": staticmethod(function), "loss_name": loss, "loss": _loss, "network_loss": _gradients}
    if metric is not None:
        own = _OwnMetric(metric)
        attributes |= {"metric_name": own.title, "in_processes": False, "own_metric": own, "new_scorer": _new_scorer}
    if not attributes:
        return find_task(name)
    found: Task = type(f"Own{kind.__name__}", (kind,), {**attributes, "__doc__": kind.__doc__})()
    return found


def _loss(task: Any, outputs: Any, targets: Any, label_smoothing: float = 0.0) -> Tensor:
    """Return the user's loss of a batch."""
    if label_smoothing:
        raise TaskError(f"finetune.label_smoothing is {label_smoothing:g}; allowed with a task.loss of your own: 0")
    found = task.own_loss(outputs, targets)
    if not isinstance(found, Tensor) or found.numel() != 1 or not found.is_floating_point():
        shape = f"{found.dtype} of shape {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise TaskError(f"task.loss '{task.loss_name}' returned {shape}; allowed: one number, a tensor of shape []")
    return found.reshape(())


def _gradients(task: Any, network: nn.Module, inputs: Tensor, targets: Any) -> Tensor:
    """Return the user's loss of what the model itself returns; `network` may be a view of it."""
    is_view = as_model(network) is not network
    return _loss(task, own_forward(network)(inputs) if is_view else network(inputs), targets)


def _new_scorer(task: Any) -> Scorer:
    """Return a scorer that asks the user's metric, and the task's own for the loss."""
    own = super(type(task), task).new_scorer()
    return OwnScorer(task.own_metric, own)


class _OwnMetric:
    """The user's metric.

    Attributes:
        name: `package.module:function`.
        title: The name of the score in tables.
        higher_is_better: False if a low value is good.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._function = named_callable(name, "task.metric")
        required = _num_required(self._function)
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
            _require_arguments(self._function, 2, f"task.metric '{name}'", "(predictions, targets)")
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

    def collector(self) -> Any:
        """Return an object with update and compute, without samples."""
        return self._function() if self._collects else _Gathered(self._function)

    def called(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function of the user's returns.

        Raises:
            EvaluationError: When it fails.
        """
        try:
            with torch.no_grad():
                return function(*arguments)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise EvaluationError(f"task.metric '{self.name}' failed with {type(error).__name__}: {reason}") from error

    def merit(self, value: float) -> float:
        """Return the value where high is good, else 1 / (1 + value); 0 for what is no number.

        Raises:
            EvaluationError: When it is not within its bounds.
        """
        if not math.isfinite(value):
            return 0.0
        if self.higher_is_better and 0.0 <= value <= 1.0:
            return value
        if not self.higher_is_better and value >= 0.0:
            return 1.0 / (1.0 + value)
        allowed = "0 to 1, or set its attribute higher_is_better to False" if self.higher_is_better else "0 or more"
        raise EvaluationError(f"task.metric '{self.name}' returned {value:g}; allowed: {allowed}")


class OwnScorer(Scorer):
    """Scores by the user's metric; the loss, and the check that the output fits, are the task's."""

    def __init__(self, metric: _OwnMetric, of_task: Scorer) -> None:
        self._metric = metric
        self._of_task = of_task
        self._collector = metric.collector()

    def add(self, predicted: Any, targets: Any) -> None:
        """Add a batch."""
        self._of_task.add(predicted, targets)
        found = predicted[0] if isinstance(predicted, tuple) else predicted  # of detection, without the loss
        found, targets = (to_device(each, torch.device("cpu")) for each in (found, targets))
        self._metric.called(self._collector.update, found, targets)

    def result(self, all_reduce: Reduce | None = None) -> TaskScore:
        """Return the score; `all_reduce` is not used, since a metric need not be a sum over processes.

        Raises:
            EvaluationError: When nothing was added, or the metric does not return a number within its bounds.
        """
        loss, num_samples = self._of_task.mean_loss()
        found = self._metric.called(self._collector.compute)
        try:
            value = float(found)
        except (TypeError, ValueError, RuntimeError):
            raise EvaluationError(
                f"task.metric '{self._metric.name}' returned {type(found).__name__}; allowed: one number"
            ) from None
        return TaskScore(self._metric.title, value, self._metric.merit(value), loss, num_samples)


class _Gathered:
    """Collects everything for a function of all predictions and targets."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        self._function = function
        self._predicted: list[Any] = []
        self._targets: list[Any] = []

    def update(self, predicted: Any, targets: Any) -> None:
        """Add a batch."""
        self._predicted.append(predicted)
        self._targets.append(targets)

    def compute(self) -> Any:
        """Return what the function returns for all."""
        return self._function(_joined(self._predicted), _joined(self._targets))


def _joined(batches: list[Any]) -> Any:
    """Return batches of tensors as one tensor, and of lists as one list."""
    if isinstance(batches[0], Tensor):
        return torch.cat(batches)
    every: Iterable[Any] = (entry for batch in batches for entry in batch)
    return list(every)


def _num_required(function: Callable[..., Any]) -> int | None:
    """Return how many arguments a function needs; None where that cannot be told."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return sum(each.kind in kinds and each.default is each.empty for each in parameters)


def _require_arguments(function: Callable[..., Any], number: int, what: str, allowed: str) -> None:
    """Refuse a function that cannot be called with so many arguments."""
    try:
        inspect.signature(function).bind(*range(number))
    except TypeError:
        raise TaskError(f"{what} cannot be called with {number} arguments; allowed: a function of {allowed}") from None
    except ValueError:  # of a function in C, which tells no signature
        return
