"""Image classification: one label a sample."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from cleanai_ray.errors import EvaluationError
from cleanai_ray.nn.calls import main_output
from cleanai_ray.registry import TASKS
from cleanai_ray.tasks.accuracy import Accuracy, AccuracySums, logits_of
from cleanai_ray.tasks.base import Reduce, Scorer, Task
from cleanai_ray.tasks.labels import classes_of, labels_of


class AccuracyScorer(Scorer):
    """Top-1 and top-5 accuracy, and cross-entropy."""

    def __init__(self) -> None:
        self._sums: AccuracySums | None = None

    def add(self, predicted: Tensor, targets: Tensor) -> None:
        """Add a batch: logits [N, classes] and labels, as `labels_of` takes them."""
        if self._sums is None:
            self._sums = AccuracySums(predicted.shape[1], predicted.device)
        self._sums.add(predicted, targets)

    def result(self, all_reduce: Reduce | None = None) -> Accuracy:
        """Return the accuracy."""
        if self._sums is None:
            raise EvaluationError("there are 0 batches to evaluate on, at least 1 is needed")
        return self._sums.result(all_reduce)


@TASKS.register("classification")
class Classification(Task):
    """Image classification: labels [N] or [N, classes], outputs [N, classes]; cross-entropy and accuracy."""

    name = "classification"
    metric_name = "accuracy"

    def logits(self, outputs: Any) -> Tensor:
        """Return the output; of several, as Inception and GoogLeNet have in training, the one that counts."""
        logits: Tensor = main_output(outputs)
        return logits

    def loss(self, outputs: Any, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Return the cross-entropy."""
        logits = self.logits(outputs).float()
        return functional.cross_entropy(logits, labels_of(targets, logits.shape[1]), label_smoothing=label_smoothing)

    def network_loss(self, network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of the network's output."""
        logits = self.logits(network(inputs))
        return functional.cross_entropy(logits, labels_of(targets, logits.shape[1]))

    def hits(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return how many labels are right."""
        logits = self.logits(outputs).detach()
        return (logits.argmax(1) == classes_of(targets, logits.shape[1])).sum()

    def predict(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return logits [N, classes]."""
        return logits_of(model, inputs)

    def new_scorer(self) -> Scorer:
        """Return a scorer without samples."""
        return AccuracyScorer()
