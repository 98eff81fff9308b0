"""Work that the processes of a trial share: a training, which can be one of several of a model, or a scoring."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrainingPart:
    """One of the trainings of a model: between two pruning steps, or after the last; by default the only one.

    Attributes:
        name: Distinguishes its checkpoints from those of other parts; empty where there is only one part.
        step: Number of pruning steps before it.
        epochs_before: Epochs that ran in earlier parts; the numbers and random seeds of epochs continue from there.
    """

    name: str = ""
    step: int = 1
    epochs_before: int = 0


@dataclass(frozen=True, kw_only=True)
class ScoringPart:
    """A scoring of a model on the evaluation samples.

    Attributes:
        compares: True if the model is compared with the dense one.
    """

    compares: bool = False
