"""A task with a loss or a metric of the user's own, which a study file names as `package.module:function`."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.errors import ScoreError, TaskError
from cleanai_ray.nn.modes import to_device
from cleanai_ray.nn.view import as_model, own_forward
from cleanai_ray.registry import named_callable
from cleanai_ray.tasks.base import Reduce, Scorer, Task, find_task
from cleanai_ray.tasks.exchange import of_all_processes
from cleanai_ray.tasks.own_metric import OwnMetric, require_arguments
from cleanai_ray.tasks.score import NoLabelError, TaskScore


def task_with(name: str, loss: str | None = None, metric: str | None = None) -> Task:
    """Return a task, with a loss or a metric of the user's own where one is named.

    Args:
        name: The name of the task.
        loss: `package.module:function`. It is called with the outputs of a model in training mode and the targets of a
            batch, and returns the mean loss, a scalar.
        metric: `package.module:function`. A function of two arguments is called with the predictions for all samples
            (what `Task.predict` returns, on the CPU) and with all targets; it returns a number. A class or function
            without arguments returns a collector: `update(predictions, targets)` is called for each batch, and
            `compute()` returns the number. If several processes score, predictions of all are gathered for a function,
            and collectors are merged by their `merge_state(others)`, to which the list of the other processes'
            collectors is given (torcheval's are such; those of torchmetrics get one after the other). The number is
            from 0 to 1, a high one good; or any number from 0, a low one good, where the function or collector has the
            attribute `higher_is_better = False`.

    Raises:
        RegistryError: When the task is unknown.
        StudyError: When a function cannot be imported.
        TaskError: When a function cannot be called so, or has the name of a metric of a task, `loss` or `merit`.
    """
    kind = type(find_task(name))
    attributes: dict[str, Any] = {}
    if loss is not None:
        function = named_callable(loss, "task.loss")
        require_arguments(function, 2, f"task.loss '{loss}'", "(outputs, targets)")
        attributes |= {"own_loss": staticmethod(function), "loss_name": loss, "loss": _loss, "network_loss": _gradients}
    if metric is not None:
        own = OwnMetric(metric)
        attributes |= {"metric_name": own.title, "own_metric": own, "new_scorer": _new_scorer}
        attributes |= {"in_processes": own.merges, "scored_by": own.alone}
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


class OwnScorer(Scorer):
    """Scores by the user's metric; the loss, and the check that the output fits, are the task's."""

    def __init__(self, metric: OwnMetric, of_task: Scorer) -> None:
        self._metric = metric
        self._of_task = of_task
        self._collector = metric.collector()
        self._number = 0

    def add(self, predicted: Any, targets: Any) -> None:
        """Add a batch."""
        self._of_task.add(predicted, targets)
        self._number += len(targets)
        found = predicted[0] if isinstance(predicted, tuple) else predicted  # of detection, without the loss
        found, targets = (to_device(each, torch.device("cpu")) for each in (found, targets))
        self._metric.update(self._collector, found, targets)

    def result(self, all_reduce: Reduce | None = None) -> TaskScore:
        """Return the score. A metric is no sum, so that torch's processes exchange what they collected.

        Of several processes, the loss is the mean of theirs, weighted by samples.

        Raises:
            EvaluationError: When nothing was added, the metric does not return a number within its bounds, or several
                processes score and what they collected cannot be merged.
        """
        collector = self._collector
        if all_reduce is None:
            loss, num_samples = self._of_task.mean_loss()
        else:
            collector, loss, num_samples = self._of_all()
        found = self._metric.called(collector.compute)
        try:
            value = float(found)
        except (TypeError, ValueError, RuntimeError):
            raise ScoreError(
                f"task.metric '{self._metric.name}' returned {type(found).__name__}; allowed: one number"
            ) from None
        return TaskScore(self._metric.title, value, self._metric.merit(value), loss, num_samples)

    def _of_all(self) -> tuple[Any, float, int]:
        """Return the collector of all processes' samples, their mean loss, and their number."""
        if not self._metric.merges:
            raise ScoreError(f"several processes score; allowed for {self._metric.alone}: 1")
        loss, weight = 0.0, 0
        with suppress(NoLabelError):  # the samples of other processes may have labels
            loss, weight = self._of_task.mean_loss() if self._number else (0.0, 0)
        own = self._metric.share_of(self._collector), loss * weight, weight, self._number
        shares = [share for share in of_all_processes(own) if share[3]]
        if not shares:
            raise ScoreError("there are 0 batches to evaluate on, at least 1 is needed")
        total, weights, number = (sum(share[place] for share in shares) for place in (1, 2, 3))
        if not weights:
            raise NoLabelError(f"none of {number} samples has a label to compute the loss by; at least 1 is needed")
        return self._metric.merged([share[0] for share in shares]), total / weights, number
