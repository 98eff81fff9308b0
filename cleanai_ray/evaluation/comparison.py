"""Comparison of a pruned classifier with the dense one, sample by sample: agreement, losses and gains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cleanai_ray.errors import EvaluationError
from cleanai_ray.evaluation.confidence import ConfidenceBins, ConfidenceSums, bins_of
from cleanai_ray.nn.hooks import require_no_hooks
from cleanai_ray.nn.modes import evaluation_mode
from cleanai_ray.tasks.accuracy import Accuracy, AccuracySums, logits_of


@dataclass(frozen=True)
class Comparison:
    """Sums over samples that both models scored. Those of two sets of samples add up: `a + b`.

    Attributes:
        agreed: Number of samples with the same answer of both models; labels are not read.
        divergence: Sum of KL(dense || pruned) of the output distributions, in nats; labels are not read.
        lost: Number of samples that only the dense model gets right.
        gained: Number of samples that only the pruned model gets right.
        class_total: Number of samples of each class.
        class_correct_dense: Number of those that the dense model gets right.
        class_correct: Number of those that the pruned model gets right.
        confidence_dense: The dense model's samples by confidence.
        confidence: The pruned model's samples by confidence.
    """

    agreed: int
    divergence: float
    lost: int
    gained: int
    class_total: tuple[int, ...]
    class_correct_dense: tuple[int, ...]
    class_correct: tuple[int, ...]
    confidence_dense: ConfidenceBins
    confidence: ConfidenceBins

    def __add__(self, other: Comparison) -> Comparison:
        """Return the comparison on both sets of samples together.

        Raises:
            ValueError: When the numbers of classes differ.
        """

        def both(name: str) -> tuple[int, ...]:
            return tuple(a + b for a, b in zip(getattr(self, name), getattr(other, name), strict=True))

        return Comparison(
            agreed=self.agreed + other.agreed,
            divergence=self.divergence + other.divergence,
            lost=self.lost + other.lost,
            gained=self.gained + other.gained,
            class_total=both("class_total"),
            class_correct_dense=both("class_correct_dense"),
            class_correct=both("class_correct"),
            confidence_dense=self.confidence_dense + other.confidence_dense,
            confidence=self.confidence + other.confidence,
        )

    @property
    def num_samples(self) -> int:
        """Number of compared samples."""
        return sum(self.class_total)

    @property
    def agreement(self) -> float:
        """Share of samples with the same answer of both models."""
        return self.agreed / self.num_samples

    @property
    def mean_divergence(self) -> float:
        """Mean KL(dense || pruned), in nats."""
        return self.divergence / self.num_samples

    def class_rows(self) -> Iterator[dict[str, Any]]:
        """Yield a row for each class that has samples, with the columns of `schemas.CLASSES` except trial_id.

        The class that lost most comes first; of several, the one with the smallest label.
        """
        rows = []
        counts = zip(self.class_total, self.class_correct_dense, self.class_correct, strict=True)
        for label, (total, dense, pruned) in enumerate(counts):
            if total:
                change = (pruned - dense) / total
                row = {"label": label, "num_evaluated": total, "accuracy_dense": dense / total}
                rows.append({**row, "accuracy": pruned / total, "change": change})
        yield from sorted(rows, key=lambda row: (row["change"], row["label"]))


class _ComparisonSums:
    """The sums of a comparison over batches, on the device: nothing is read back before `result`."""

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.accuracy = AccuracySums(num_classes, device)
        self._num_classes = num_classes
        self._pairs = torch.zeros(4, dtype=torch.float64, device=device)
        self._classes = torch.zeros(3, num_classes, dtype=torch.float64, device=device)
        self._confidences = ConfidenceSums(device), ConfidenceSums(device)

    def add(self, dense_logits: Tensor, logits: Tensor, labels: Tensor) -> None:
        self.accuracy.add(logits, labels)
        dense_log, log = (functional.log_softmax(values.double(), dim=1) for values in (dense_logits, logits))
        dense_answer, answer = dense_logits.argmax(1), logits.argmax(1)
        dense_hit, hit = dense_answer == labels, answer == labels
        self._pairs += torch.stack(
            [
                (dense_answer == answer).sum(),
                functional.kl_div(log, dense_log, reduction="sum", log_target=True),
                (dense_hit & ~hit).sum(),
                (~dense_hit & hit).sum(),
            ]
        )
        ones = torch.ones_like(labels, dtype=torch.float64)
        rows = torch.stack([ones, dense_hit.double(), hit.double()])
        self._classes.scatter_add_(1, labels.expand(3, -1), rows)
        for confidence, values, hits in zip(self._confidences, (dense_log, log), (dense_hit, hit), strict=True):
            confidence.add(values, hits)

    def result(self, all_reduce: Callable[[Tensor], Tensor] | None) -> Comparison:
        parts = [self._pairs, self._classes, *(confidence.sums for confidence in self._confidences)]
        values = torch.cat([part.flatten() for part in parts])
        if all_reduce is not None:
            values = all_reduce(values)
        pairs, classes, dense_bins, bins = values.split([part.numel() for part in parts])
        agreed, divergence, lost, gained = pairs.tolist()
        total, dense_correct, correct = classes.reshape(3, -1).long().tolist()
        return Comparison(
            agreed=int(agreed),
            divergence=divergence,
            lost=int(lost),
            gained=int(gained),
            class_total=tuple(total),
            class_correct_dense=tuple(dense_correct),
            class_correct=tuple(correct),
            confidence_dense=bins_of(dense_bins.reshape(3, -1)),
            confidence=bins_of(bins.reshape(3, -1)),
        )


def compare(
    dense: nn.Module,
    pruned: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    device: torch.device | str = "cpu",
    all_reduce: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Accuracy, Comparison]:
    """Score a pruned classifier as `evaluate` does, and compare it with the dense one in the same pass.

    Both models get each batch, so that nothing is stored by sample, and images that cannot be read are missing for
    both. Every module is put back in the mode it was in.

    Args:
        dense: Maps images [N, ...] to logits [N, classes]. It is moved to the device.
        pruned: Likewise, with the same classes.
        batches: Pairs of images and labels [N]; the last batch may be smaller.
        device: Where to compute.
        all_reduce: Sums a tensor over processes that each score a part of the samples.

    Returns:
        The pruned model's score, and the comparison.

    Raises:
        EvaluationError: When a hook is left on a model, there is no sample, or the outputs are not [N, classes] of the
            same number of classes.
    """
    require_no_hooks(dense)
    require_no_hooks(pruned)
    device = torch.device(device)
    sums: _ComparisonSums | None = None
    with evaluation_mode(dense.to(device)), evaluation_mode(pruned.to(device)), torch.no_grad():
        for images, labels in batches:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True).long()
            dense_logits, logits = logits_of(dense, images), logits_of(pruned, images)
            if dense_logits.shape != logits.shape:
                raise EvaluationError(
                    f"the dense model has {dense_logits.shape[1]} classes, the pruned one {logits.shape[1]}; "
                    "allowed: the same number"
                )
            if sums is None:
                sums = _ComparisonSums(logits.shape[1], device)
            sums.add(dense_logits, logits, labels)
        if sums is None:
            raise EvaluationError("there are 0 batches to evaluate on, at least 1 is needed")
        return sums.accuracy.result(all_reduce), sums.result(all_reduce)
