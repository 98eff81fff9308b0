"""A risk, the check that finds it, and the limits that several checks share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cleanai_ray.analysis.frames import StudyFrames

Severity = Literal["high", "medium", "info"]

LARGE_LOSS, BLOCKING_LOSS = 1.0, 5.0
"""Points below the dense model beyond which a loss is named, and beyond which no trial is acceptable."""

BLOCKING_SHARE = 0.2
"""Share of the dense score beyond which no loss is acceptable, whatever the points, where the score is not accuracy."""

MOST_DETAILS = 12
"""The most lines that a risk lists; failed trials are always listed in full."""


@dataclass(frozen=True)
class Risk:
    """One risk.

    Attributes:
        severity: high, medium or info.
        kind: A short name, the same for every risk of its kind.
        sentence: The finding, with its numbers.
        details: Further lines, for instance the error of every failed trial.
        is_about_best: True if it concerns the most accurate trial.
        is_blocking: True if no trial is acceptable because of it.
    """

    severity: Severity
    kind: str
    sentence: str
    details: tuple[str, ...] = ()
    is_about_best: bool = False
    is_blocking: bool = False


class Check(ABC):
    """A check of a study for risks of one kind.

    Attributes:
        position: Place among the checks; any number, so that a new one goes between two that are there. Risks of equal
            weight are listed in this order.
        looks_for: The risk in a few words; the report lists it among what was checked.
    """

    position: float
    looks_for: str

    @abstractmethod
    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield the risks of a study."""


def shorten_list(lines: list[str]) -> tuple[str, ...]:
    """Return the first `MOST_DETAILS` lines, and a line that counts the rest."""
    rest = len(lines) - MOST_DETAILS
    return (*lines[:MOST_DETAILS], f"and {rest} more") if rest > 0 else tuple(lines)
