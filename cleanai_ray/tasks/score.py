"""The score of a task whose metric is a mean over positions."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TaskScore:
    """What a model scores on a set of samples.

    Attributes:
        metric_name: What the metric is called.
        value: The metric.
        merit: The metric where high is good, else a falling function of it; in [0, 1].
        loss: Mean loss.
        num_samples: Samples that were scored.
        parts: The metric of each class, where it has such parts; None for a class that does not occur.
    """

    metric_name: str
    value: float
    merit: float
    loss: float
    num_samples: int
    parts: tuple[float | None, ...] = field(default=())
