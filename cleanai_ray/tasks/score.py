"""The score of tasks other than classification."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TaskScore:
    """The score of a model on a set of samples.

    Attributes:
        metric_name: Name of the score.
        value: Its value.
        merit: The value where high is good, else a falling function of it; in [0, 1].
        loss: Mean loss.
        num_samples: Number of scored samples.
        parts: The score of each class, where there is one; None for a class that does not occur.
    """

    metric_name: str
    value: float
    merit: float
    loss: float
    num_samples: int
    parts: tuple[float | None, ...] = field(default=())
