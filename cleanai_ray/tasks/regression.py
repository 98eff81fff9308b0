"""Regression: one number or several a sample."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cleanai_ray.errors import EvaluationError, TaskError
from cleanai_ray.nn.calls import main_output
from cleanai_ray.nn.view import as_model, as_network, own_forward
from cleanai_ray.registry import TASKS
from cleanai_ray.tasks.base import Reduce, Scorer, Task
from cleanai_ray.tasks.score import TaskScore

_REACH, _STEP = 12.0, 0.5
"""Bins of the normal distributions that stand for predictions: from -12 to 12, half a standard deviation wide."""


class RootMeanSquare(Scorer):
    """Root of the mean squared error over samples and targets, from sums on the device."""

    def __init__(self) -> None:
        self._sums: list[Tensor] = []
        self._num_targets = 1

    def add(self, predicted: Tensor, targets: Tensor) -> None:
        """Add a batch: predictions [N, targets], and targets [N] or [N, targets]."""
        predicted, targets = predicted.double(), _rows(targets).double()
        self._num_targets = targets.shape[1]
        squares = (predicted - targets).square().sum().reshape(1)
        self._sums.append(torch.cat([squares, squares.new_tensor([len(targets)]), targets.sum(0), (targets**2).sum(0)]))

    def result(self, all_reduce: Reduce | None = None) -> TaskScore:
        """Return the root mean square; its merit is R squared, the share of the targets' variance that is explained.

        R squared of several targets is that of all together; below 0, where the mean would predict better, it is 0.
        """
        if not self._sums:
            raise EvaluationError("there are 0 batches to evaluate on, at least 1 is needed")
        sums = torch.stack(self._sums).sum(0)
        error, number, *moments = (sums if all_reduce is None else all_reduce(sums)).tolist()
        first, second = moments[: self._num_targets], moments[self._num_targets :]
        spread = sum(square - total**2 / number for total, square in zip(first, second, strict=True))
        mean = error / (number * self._num_targets)
        merit = max(0.0, 1.0 - error / spread) if spread > 0 and math.isfinite(error) else 0.0
        return TaskScore("RMSE", math.sqrt(mean), merit, mean, int(number))


def normal_logits(values: Tensor) -> Tensor:
    """Return logits [N, bins, targets] of normal distributions of variance 1 around values [N, targets].

    The KL divergence of two of them is half the squared difference of their means, so what judges classifiers by the
    softmax of their outputs judges predictions by their squared error.
    """
    values = values.reshape(len(values), -1)
    centres = torch.arange(-_REACH, _REACH + _STEP, _STEP, device=values.device, dtype=values.dtype)
    return -0.5 * (values[:, None] - centres[:, None]).square()


def _distributions(network: nn.Module, inputs: Tensor) -> Tensor:
    return normal_logits(main_output(own_forward(network)(inputs)))


@TASKS.register("regression")
class Regression(Task):
    """Regression: targets [N] or [N, targets], of about unit variance; squared error, and its root (RMSE).

    A model maps inputs to predictions [N] or [N, targets]. Repair and sensitivity judge it by the squared difference
    from the dense model's predictions.
    """

    name = "regression"
    metric_name = "RMSE"

    def network(self, model: nn.Module) -> nn.Module:
        """Return a view of the model that returns the logits of normal distributions around the predictions."""
        return as_network(model, _distributions)

    def restored(self, network: nn.Module) -> nn.Module:
        """Return the model itself."""
        return as_model(network)

    def logits(self, outputs: Any) -> Tensor:
        """Refuse: predictions are no logits."""
        raise TaskError("finetune.distillation is set, and predictions of numbers are no logits; allowed: null")

    def loss(self, outputs: Any, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Return the mean squared error; label smoothing is refused."""
        if label_smoothing:
            raise TaskError(f"finetune.label_smoothing is {label_smoothing:g}; allowed for task regression: 0")
        predicted: Tensor = main_output(outputs)
        return functional.mse_loss(predicted.float().reshape(len(predicted), -1), _rows(targets).float())

    def network_loss(self, network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error."""
        return self.loss(own_forward(network)(inputs), targets)

    def hits(self, outputs: Any, targets: Tensor) -> None:
        """Return None: numbers are never quite right."""

    def predict(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the predictions [N, targets]."""
        found = main_output(model(inputs))
        expected = _rows(targets).shape
        if not isinstance(found, Tensor) or found.reshape(len(found), -1).shape != expected:
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise EvaluationError(f"the model's output is {shape}, allowed is {list(expected)}")
        return found.reshape(len(found), -1)

    def new_scorer(self) -> Scorer:
        """Return a scorer without samples."""
        return RootMeanSquare()


def _rows(targets: Tensor) -> Tensor:
    return targets.reshape(len(targets), -1)
