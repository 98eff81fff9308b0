"""The batches of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import Tensor

Batches = Iterable[tuple[Tensor, Any]]


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The batches that a training reads.

    Attributes:
        train_batches: Called with the epoch, from 1 (continuing the numbers of earlier parts); returns (inputs,
            targets) for this process; targets may be None where `section.distillation` has weight 1.
        steps_per_epoch: Batches that are taken from it.
        later_batches: Called with the epoch and a number of batches; returns those after them, without making these. By
            default, they are made and passed over when a training resumes within an epoch.
        validation_batches: Returns (inputs, targets, or None with a teacher); the share of this process, where there
            are several.
        start_competes: True if the weights at the start are validated and kept where no epoch is better. False where
            they are random, or have seen the validation images in training: remembering them would pass for accuracy.
        unseen_batches: Where `start_competes` is false: returns (inputs, targets) that the start has not seen, as
            `validation_batches` does. The weights at the start are kept where the best epoch is not better on these.
            None: some epoch is kept in any case.
    """

    train_batches: Callable[[int], Batches]
    steps_per_epoch: int
    validation_batches: Callable[[], Batches]
    start_competes: bool = True
    unseen_batches: Callable[[], Batches] | None = None
    later_batches: Callable[[int, int], Batches] | None = None

    def batches_from(self, epoch: int, done: int) -> Batches:
        """Return the training batches of an epoch after the first `done`."""
        if not done:
            return self.train_batches(epoch)
        if self.later_batches is not None:
            return self.later_batches(epoch, done)
        return islice(self.train_batches(epoch), done, None)
