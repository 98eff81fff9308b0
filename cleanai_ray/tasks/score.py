"""The score of tasks other than classification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cleanai_ray.errors import ScoreError


class NoLabelError(ScoreError):
    """No sample has a label by which it could be scored; others of the data set may have one."""


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
        by_role: In a study, the scores on the samples that decide which trial is chosen, and on the others.
    """

    metric_name: str
    value: float
    merit: float
    loss: float
    num_samples: int
    parts: tuple[float | None, ...] = field(default=())
    by_role: Mapping[str, TaskScore] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TaskScore:
        """Return the score whose `dataclasses.asdict` went through JSON."""
        by_role = {role: cls.from_json(score) for role, score in content.get("by_role", {}).items()}
        return cls(**{**content, "parts": tuple(content.get("parts", ())), "by_role": by_role})
