"""Multi-label classification: for every class, whether a sample has it.

torchmetrics is not used for the average precision: its definition is a few lines, in float64 here, and no study of
images should need the package.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cleanai_ray.errors import EvaluationError
from cleanai_ray.nn.calls import main_output
from cleanai_ray.nn.view import as_model, as_network, own_forward
from cleanai_ray.registry import TASKS
from cleanai_ray.tasks.accuracy import logits_of
from cleanai_ray.tasks.base import Reduce, Scorer, Task
from cleanai_ray.tasks.exchange import of_all_processes
from cleanai_ray.tasks.score import NoLabelError, TaskScore


def average_precision(logits: Tensor, marks: Tensor) -> float | None:
    """Return the average precision of one class: sum over thresholds of (gain of recall) times precision.

    Samples of equal logits are taken together, as scikit-learn does. None where no sample has the class.

    Args:
        logits: One number a sample [N]; one that is not a number counts as the lowest.
        marks: 1 where the sample has the class, else 0 [N].
    """
    count = float(marks.sum())
    if not count:
        return None
    values = torch.nan_to_num(logits.double(), nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    order = values.argsort(descending=True)
    values, found = values[order], marks.double()[order].cumsum(0)
    is_last = torch.ones(len(values), dtype=torch.bool, device=values.device)
    is_last[:-1] = values[1:] != values[:-1]
    number = torch.arange(1, len(values) + 1, device=values.device, dtype=torch.float64)
    found, number = found[is_last], number[is_last]
    gained = torch.diff(found, prepend=found.new_zeros(1)) / count
    return float((gained * found / number).sum())


class MacroAveragePrecision(Scorer):
    """Mean over classes of the average precision (macro AP), and binary cross-entropy, from all samples' logits."""

    def __init__(self) -> None:
        self._logits: list[Tensor] = []
        self._marks: list[Tensor] = []

    def add(self, predicted: Tensor, targets: Tensor) -> None:
        """Add a batch: logits [N, classes] and marks [N, classes]."""
        self._logits.append(predicted.detach().float())
        self._marks.append(_marks(targets, predicted))

    def result(self, all_reduce: Reduce | None = None) -> TaskScore:
        """Return the mean over the classes that occur; precision is no sum, so that torch's processes exchange answers.

        Raises:
            EvaluationError: When nothing was added.
            NoLabelError: When no sample has a class.
        """
        if all_reduce is not None:
            shares = of_all_processes((self._logits, self._marks))
            self._logits, self._marks = ([batch for share in shares for batch in share[place]] for place in (0, 1))
        logits, marks = self._joined()
        parts = tuple(average_precision(*pair) for pair in zip(logits.T, marks.T, strict=True))
        present = [part for part in parts if part is not None]
        if not present:
            raise NoLabelError(f"none of {len(marks)} samples has a label; at least 1 with a label is needed")
        mean = sum(present) / len(present)
        return TaskScore("macro AP", mean, mean, *self.mean_loss(), parts)

    def mean_loss(self) -> tuple[float, int]:
        """Return the mean binary cross-entropy, and the number of samples, of which none needs a class."""
        logits, marks = self._joined()
        return float(functional.binary_cross_entropy_with_logits(logits.double(), marks.double())), len(marks)

    def _joined(self) -> tuple[Tensor, Tensor]:
        if not self._logits:
            raise EvaluationError("there are 0 batches to evaluate on, at least 1 is needed")
        return torch.cat(self._logits), torch.cat(self._marks)


def _pairs(network: nn.Module, inputs: Tensor) -> Tensor:
    return _two_answers(main_output(own_forward(network)(inputs)))


def _two_answers(logits: Tensor) -> Tensor:
    """Return logits [N, 2, classes] of `is not there` and `is there`, whose softmax is the sigmoid of logits."""
    return torch.stack([torch.zeros_like(logits), logits], dim=1)


@TASKS.register("multilabel_classification")
class MultilabelClassification(Task):
    """Multi-label classification: marks [N, classes], 1 where a sample has a class; binary cross-entropy and macro AP.

    A model maps inputs to logits [N, classes], each of which is judged by its sigmoid. Repair and sensitivity compare
    the answers of every class, there or not there, with the dense model's.
    """

    name = "multilabel_classification"
    metric_name = "macro AP"

    def network(self, model: nn.Module) -> nn.Module:
        """Return a view of the model that returns logits [N, 2, classes]: of the class's absence, and presence."""
        return as_network(model, _pairs)

    def restored(self, network: nn.Module) -> nn.Module:
        """Return the model itself."""
        return as_model(network)

    def logits(self, outputs: Any) -> Tensor:
        """Return logits [N, 2, classes]."""
        return _two_answers(main_output(outputs))

    def loss(self, outputs: Any, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Return the binary cross-entropy, the mean over samples and classes; smoothing s moves marks s / 2 inwards."""
        logits: Tensor = main_output(outputs).float()
        marks = _marks(targets, logits) * (1.0 - label_smoothing) + label_smoothing / 2
        return functional.binary_cross_entropy_with_logits(logits, marks)

    def network_loss(self, network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the binary cross-entropy."""
        return self.loss(own_forward(network)(inputs), targets)

    def hits(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return the sum over samples of the share of classes whose answer is right."""
        logits: Tensor = main_output(outputs).detach()
        return ((logits > 0) == (_marks(targets, logits) > 0.5)).float().mean(1).sum()

    def predict(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return logits [N, classes]."""
        logits = logits_of(model, inputs)
        _marks(targets, logits)
        return logits

    def new_scorer(self) -> Scorer:
        """Return a scorer without samples."""
        return MacroAveragePrecision()


def _marks(targets: Any, logits: Tensor) -> Tensor:
    """Return targets as float32 [N, classes], which are 0 or 1 (or a probability, in training)."""
    if not isinstance(targets, Tensor) or targets.shape != logits.shape:
        found = list(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        raise EvaluationError(
            f"targets are {found} and the model's output {list(logits.shape)}; allowed for task "
            "multilabel_classification: the same shape, 1 where a sample has a class and 0 elsewhere"
        )
    return targets.float()
