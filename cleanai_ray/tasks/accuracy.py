"""The score of a classifier: top-1 and top-5 accuracy and cross-entropy, from sums over batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cleanai_ray.errors import EvaluationError
from cleanai_ray.nn.calls import main_output
from cleanai_ray.tasks.labels import classes_of, labels_of

_TOP_K = 5


@dataclass(frozen=True)
class Accuracy:
    """The score of a classifier on a set of labelled samples. Scores of two sets of samples add up: `a + b`.

    Attributes:
        accuracy: Top-1 accuracy, in [0, 1].
        top5: Share of samples whose label is among the 5 largest outputs (among all, with fewer than 5 classes).
        loss: Mean cross-entropy, in nats.
        num_samples: Number of scored samples.
        class_correct: Correct samples of each class.
        class_total: Samples of each class.
    """

    accuracy: float
    top5: float
    loss: float
    num_samples: int
    class_correct: tuple[int, ...]
    class_total: tuple[int, ...]

    def __add__(self, other: Accuracy) -> Accuracy:
        """Return the score on both sets of samples together.

        Raises:
            ValueError: When the numbers of classes differ.
        """
        num = self.num_samples + other.num_samples
        correct = tuple(a + b for a, b in zip(self.class_correct, other.class_correct, strict=True))
        total = tuple(a + b for a, b in zip(self.class_total, other.class_total, strict=True))
        top5 = round(self.top5 * self.num_samples) + round(other.top5 * other.num_samples)
        loss = self.loss * self.num_samples + other.loss * other.num_samples
        return Accuracy(sum(correct) / num, top5 / num, loss / num, num, correct, total)

    @property
    def metric_name(self) -> str:
        """Name of the score: `accuracy`."""
        return "accuracy"

    @property
    def value(self) -> float:
        """The score of the task: the accuracy."""
        return self.accuracy

    @property
    def merit(self) -> float:
        """The accuracy; training keeps the epoch where it is highest."""
        return self.accuracy


class AccuracySums:
    """The sums of an `Accuracy` over batches, on the device: nothing is read back before `result`.

    Args:
        num_classes: Outputs of the classifier.
        device: Where the batches are.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.num_classes = num_classes
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        self._classes = torch.zeros(2, num_classes, dtype=torch.int64, device=device)

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Add a batch: logits [N, classes] and labels, as `labels_of` takes them."""
        labels = classes_of(targets, self.num_classes)
        hit = logits.argmax(1) == labels
        nearest = logits.topk(min(_TOP_K, self.num_classes), dim=1).indices
        hit_top5 = (nearest == labels[:, None]).any(1) | hit
        self._sums[0] += functional.cross_entropy(logits.float(), labels_of(targets, self.num_classes), reduction="sum")
        self._sums[1] += hit_top5.sum()
        self._classes[0].scatter_add_(0, labels, hit.long())
        self._classes[1].scatter_add_(0, labels, torch.ones_like(labels))

    def result(self, all_reduce: Callable[[Tensor], Tensor] | None) -> Accuracy:
        """Return the score; `all_reduce` sums a tensor over processes that each scored a share of the samples."""
        values = torch.cat([self._sums, self._classes.flatten().double()])
        if all_reduce is not None:
            values = all_reduce(values)
        loss, top5, *counts = values.tolist()
        correct = tuple(int(count) for count in counts[: self.num_classes])
        total = tuple(int(count) for count in counts[self.num_classes :])
        num = sum(total)
        return Accuracy(sum(correct) / num, top5 / num, loss / num, num, correct, total)


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return a classifier's output [N, classes] for images [N, ...]; of several, the one that counts.

    Raises:
        EvaluationError: When the output is something else.
    """
    logits = main_output(model(images))
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise EvaluationError(f"the model's output is {found}, allowed is [{len(images)}, classes]")
    return logits
