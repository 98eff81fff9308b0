"""Expected calibration error of a classifier: is it right as often as it is sure? Computed from sums by confidence.

torchmetrics' MulticlassCalibrationError is not used: it keeps the confidence of every sample in float32 instead of sums
that add up over shards and processes, and its bins are closed on the left, not on the right as in Guo et al.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NUM_BINS = 15
"""Bins of equal width, as Guo et al. use them."""


@dataclass(frozen=True)
class ConfidenceBins:
    """Samples by the probability of their answer: bin b holds those in (b / 15, (b + 1) / 15].

    Attributes:
        count: Samples of each bin.
        correct: Those of them whose answer is right.
        confidence: Sum of the probabilities of the answers in each bin.
    """

    count: tuple[int, ...]
    correct: tuple[int, ...]
    confidence: tuple[float, ...]

    def __add__(self, other: ConfidenceBins) -> ConfidenceBins:
        """Return the bins of both sets of samples together."""
        return ConfidenceBins(
            tuple(a + b for a, b in zip(self.count, other.count, strict=True)),
            tuple(a + b for a, b in zip(self.correct, other.correct, strict=True)),
            tuple(a + b for a, b in zip(self.confidence, other.confidence, strict=True)),
        )

    @property
    def expected_error(self) -> float:
        """Expected calibration error, in [0, 1] (Guo et al. 2017, "On Calibration of Modern Neural Networks").

        The mean over samples of the difference between accuracy and mean confidence of a sample's bin; 0 without
        samples.
        """
        gaps = (abs(right - sure) for right, sure in zip(self.correct, self.confidence, strict=True))
        return sum(gaps) / max(sum(self.count), 1)


class ConfidenceSums:
    """The sums of `ConfidenceBins` over batches, on the device: nothing is read back before `bins_of`.

    Args:
        device: Where the batches are.
    """

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(3, NUM_BINS, dtype=torch.float64, device=device)
        self._bins = torch.arange(NUM_BINS, device=device)

    def add(self, log_probabilities: Tensor, hit: Tensor) -> None:
        """Add a batch.

        Args:
            log_probabilities: Logarithms of the probabilities [N, classes], float64.
            hit: Whether the most probable class is the label, bool [N].
        """
        confidence = log_probabilities.max(1).values.exp()
        # A NaN must be put in some bin; it is then part of that bin's sum, so that the error is NaN too.
        place = ((torch.nan_to_num(confidence) * NUM_BINS).ceil().long() - 1).clamp(0, NUM_BINS - 1)
        rows = torch.stack([torch.ones_like(confidence), hit.double(), confidence])
        # A product adds in the same order every time; scattering does not on CUDA.
        self.sums += rows @ (place[:, None] == self._bins).double()


def bins_of(sums: Tensor) -> ConfidenceBins:
    """Return sums [3, bins] of `ConfidenceSums` as bins."""
    count, correct, confidence = sums.tolist()
    return ConfidenceBins(tuple(map(int, count)), tuple(map(int, correct)), tuple(confidence))
