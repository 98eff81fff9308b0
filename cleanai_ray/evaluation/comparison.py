"""Comparison of a pruned classifier with the dense one, sample by sample: agreement, losses and gains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cleanai_ray.display.tables import Displayed, Grid, Summary, percent
from cleanai_ray.errors import EvaluationError
from cleanai_ray.evaluation.confidence import ConfidenceBins, ConfidenceSums, bins_of
from cleanai_ray.evaluation.kept_logits import KeptLogits
from cleanai_ray.tasks.accuracy import Accuracy, AccuracySums


@dataclass(frozen=True)
class Comparison(Displayed):
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

    def summary(self) -> Summary:
        """Return a table of the classes, the one that lost most first; notebooks show it in place of the sums."""
        rows = tuple(
            (
                str(row["label"]),
                f"{row['num_evaluated']:,}",
                percent(row["accuracy_dense"]),
                percent(row["accuracy"]),
                f"{100 * row['change']:+.1f} points",
            )
            for row in self.class_rows()
        )
        return Summary(self._in_short(), (Grid(columns=("class", "samples", "dense", "pruned", "change"), rows=rows),))

    def _in_short(self) -> str:
        agreement = f"agreement {percent(self.agreement)}, " if self.num_samples else ""
        return f"{self.num_samples:,} samples: {agreement}{self.lost:,} lost, {self.gained:,} gained"

    def __repr__(self) -> str:
        return f"Comparison({self._in_short()})"


class ComparisonSums:
    """The sums of a `Comparison` over batches, on the device: nothing is read back before `result`.

    Args:
        num_classes: Outputs of the classifiers.
        device: Where the batches are.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._pairs = torch.zeros(4, dtype=torch.float64, device=device)
        self._classes = torch.zeros(3, num_classes, dtype=torch.float64, device=device)
        self._confidences = ConfidenceSums(device), ConfidenceSums(device)

    def add(self, dense_logits: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: the logits of both models [N, classes], and labels [N]."""
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

    def result(self) -> Comparison:
        """Return the comparison."""
        parts = [self._pairs, self._classes, *(confidence.sums for confidence in self._confidences)]
        values = torch.cat([part.flatten() for part in parts])
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


class ClassifierScorer:
    """The score of a classifier, and its comparison with another one's logits, from one pass over the samples.

    Args:
        dense: Logits of the model to compare with; None to compare with none.
    """

    def __init__(self, dense: KeptLogits | None = None) -> None:
        self._dense = dense
        self._accuracy: AccuracySums | None = None
        self._comparison: ComparisonSums | None = None

    def add(self, numbers: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: indices of the samples int64 [N] on the CPU, logits [N, classes] and labels [N].

        Raises:
            EvaluationError: When the two models have different classes.
            KeyError: When there are no logits of a sample to compare with.
        """
        num_classes, dense = logits.shape[1], self._dense
        if self._accuracy is None:
            self._accuracy = AccuracySums(num_classes, logits.device)
        self._accuracy.add(logits, labels)
        if dense is None:
            return
        if dense.num_classes != num_classes:
            raise EvaluationError(
                f"the dense model has {dense.num_classes} classes, the pruned one {num_classes}; "
                "allowed: the same number"
            )
        if self._comparison is None:
            self._comparison = ComparisonSums(num_classes, logits.device)
        self._comparison.add(dense.rows(numbers, logits.device), logits, labels)

    def result(self) -> tuple[Accuracy, Comparison | None] | None:
        """Return the score and the comparison; None where nothing was added."""
        if self._accuracy is None:
            return None
        comparison = None if self._comparison is None else self._comparison.result()
        return self._accuracy.result(None), comparison
