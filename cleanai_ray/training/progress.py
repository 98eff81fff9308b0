"""The best epoch so far, and the decision whether to continue."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from cleanai_ray.config.finetune import EarlyStoppingSection
from cleanai_ray.tasks.base import Score

Weights = dict[str, Tensor]


@dataclass
class Progress:
    """The epochs that ran, the best of them and its weights.

    Epoch 0 is the state before training. A later epoch is the best when its validation accuracy (`Score.merit` in other
    tasks) is higher than that of all earlier epochs, the start included, and its validation loss is finite. Early
    stopping compares trained epochs with each other only: a first epoch that falls below the start, as it does with a
    high learning rate, does not count against the patience.

    Attributes:
        weights: State dictionary of the best epoch, on the CPU.
        best_accuracy: Its validation accuracy, or -1 where no loss was finite.
        best_epoch: Its number; 0 is the start.
        history: A row per epoch, with the columns of `schemas.HISTORY` except trial_id and step.
        reference: Accuracy that the next epoch must exceed by min_delta to reset the patience.
        epochs_waited: Epochs since `reference` was set.
        start_merit: Score of the start on samples that it has not seen, where these decide between it and the best
            epoch; None in other trainings, and in checkpoints of versions that did not have it.
        start_weights: State dictionary of such a start, on the CPU.
    """

    weights: Weights
    best_accuracy: float
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    reference: float = -math.inf
    epochs_waited: int = 0
    start_merit: float | None = None
    start_weights: Weights | None = None

    @classmethod
    def begin(cls, start: Score | None, weights: Weights, unseen: Score | None = None) -> Progress:
        """Return the progress before the first epoch.

        Args:
            start: Validation of the start; None: any first epoch is better.
            weights: State dictionary of the start.
            unseen: Score of the start by which `settle` decides in the end; None: nothing is left to decide.
        """
        return cls(
            weights=weights,
            best_accuracy=-math.inf if start is None else _score(start),
            start_merit=None if unseen is None else _score(unseen),
            start_weights=None if unseen is None else weights,
        )

    def settle(self, found: Score | None) -> None:
        """Return to the start unless the best epoch is better, by a score on samples that the start has not seen."""
        if self.start_merit is None or self.start_weights is None or found is None:
            return
        if _score(found) <= self.start_merit:
            self.weights, self.best_epoch = self.start_weights, 0

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Progress:
        """Return the progress that `state` was called on."""
        return cls(**state)

    def state(self) -> dict[str, Any]:
        """Return everything as plain values and tensors."""
        return dict(vars(self))

    @property
    def epochs_run(self) -> int:
        """Epochs that ran."""
        return len(self.history)

    def is_best(self, found: Score) -> bool:
        """Return whether a new epoch's validation makes it the best so far."""
        return _score(found) > self.best_accuracy

    def add(self, row: dict[str, Any], found: Score, weights: Weights | None, min_delta: float) -> None:
        """Add a finished epoch.

        Args:
            row: Its row of the history.
            found: Its validation.
            weights: Its weights where it is the best so far, else None.
            min_delta: Increase of accuracy that resets the patience.
        """
        self.history.append(row)
        if weights is not None:
            self.weights, self.best_accuracy, self.best_epoch = weights, _score(found), len(self.history)
        if _score(found) > self.reference + min_delta:
            self.reference, self.epochs_waited = _score(found), 0
        else:
            self.epochs_waited += 1

    def is_over(self, epochs: int, early_stopping: EarlyStoppingSection | None) -> bool:
        """Return whether all epochs ran, or the patience of early stopping is used up."""
        out_of_patience = early_stopping is not None and self.epochs_waited >= early_stopping.patience
        return self.epochs_run >= epochs or out_of_patience

    def final_history(self) -> tuple[dict[str, Any], ...]:
        """Return the rows, with `is_best` true only for the epoch whose weights are kept."""
        return tuple({**row, "is_best": place == self.best_epoch} for place, row in enumerate(self.history, start=1))


def _score(found: Score) -> float:
    return found.merit if math.isfinite(found.loss) else -1.0
