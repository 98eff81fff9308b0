"""One risk, and the limits beyond which something counts as one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["high", "medium", "info"]

LARGE_LOSS, BLOCKING_LOSS = 1.0, 5.0
"""Percentage points below the dense model from which a loss is named, and from which no trial is acceptable."""

COLLAPSED = 0.85
"""A layer that lost more than this share of its channels counts as collapsed."""

OVERFIT_DROP = 0.005
"""Fall of the validation accuracy after the best epoch, as a fraction, that counts as over-fitting."""

WIDE_INTERVAL = 0.02
"""Half the width of a 95 % interval, as a fraction, from which too few images were evaluated."""

MOST_DETAILS = 12
"""Lines that a risk lists at the most; failed trials are always listed in full."""


@dataclass(frozen=True)
class Risk:
    """One risk.

    Attributes:
        severity: high, medium or info.
        kind: A short name, the same for every risk of its sort.
        sentence: What was found, with its numbers.
        details: Further lines, for instance the error of every failed trial.
        is_about_best: Whether it concerns the best trial, which the report would recommend.
        is_blocking: Whether no trial is acceptable because of it.
    """

    severity: Severity
    kind: str
    sentence: str
    details: tuple[str, ...] = ()
    is_about_best: bool = False
    is_blocking: bool = False


def shorten_list(lines: list[str]) -> tuple[str, ...]:
    """Return the first lines, and how many more there are."""
    rest = len(lines) - MOST_DETAILS
    return (*lines[:MOST_DETAILS], f"and {rest} more") if rest > 0 else tuple(lines)
