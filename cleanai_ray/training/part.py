"""What the processes of a trial do together: a training, which is one of several of a model, or a scoring."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrainingPart:
    """One of the trainings of a model: between two pruning steps, or after the last; by default the only one.

    Attributes:
        name: Tells its checkpoints from those of the other parts; empty where there is one part.
        step: Pruning steps that came before it.
        epochs_before: Epochs that ran in the parts before it: numbers and random seeds of epochs count on from there.
    """

    name: str = ""
    step: int = 1
    epochs_before: int = 0


@dataclass(frozen=True, kw_only=True)
class ScoringPart:
    """A scoring of a model on the evaluation samples.

    Attributes:
        compares: Whether the dense model is run beside it.
    """

    compares: bool = False
