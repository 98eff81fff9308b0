"""Intervals of accuracies and of speed-ups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cleanai_ray.analysis.numbers import percent, times_between

CONFIDENCE = 0.95
"""Confidence level of every interval."""


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval of an accuracy, as fractions."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.low:.1f} to {percent(self.high)}"

    def overlaps(self, other: Interval) -> bool:
        """Return whether two intervals have a point in common."""
        return self.low <= other.high and other.low <= self.high


def wilson(num_hits: float, num_samples: int) -> Interval:
    """Return the 95 % score interval of Wilson (1927) of a share, which stays within [0, 1] near its ends.

    Args:
        num_hits: Samples that count; need not be whole, for it may be a share times the number of samples.
        num_samples: All samples.

    Raises:
        ValueError: When there is no sample, or the number of hits is not between 0 and that of samples.
    """
    from statsmodels.stats.proportion import proportion_confint  # loads pandas

    if num_samples <= 0:
        raise ValueError(f"num_samples is {num_samples}; allowed: at least 1")
    if not 0 <= num_hits <= num_samples:
        raise ValueError(f"num_hits is {num_hits}; allowed: 0 to {num_samples}")
    low, high = proportion_confint(num_hits, num_samples, alpha=1 - CONFIDENCE, method="wilson")
    # Rounding must not leave the share outside: of 20 hits in 20 samples the upper end is 1.
    share = num_hits / num_samples
    return Interval(max(0.0, min(float(low), share)), min(1.0, max(float(high), share)))


def interval_of(trial: Mapping[str, Any], column: str = "accuracy") -> Interval | None:
    """Return the interval of a trial's accuracy; None where it, or the number of images, is not known."""
    accuracy, count = trial.get(column), trial.get("num_evaluated")
    if trial.get("metric") not in (None, "accuracy"):  # not a share of right answers
        return None
    if not isinstance(accuracy, float) or not isinstance(count, int) or count <= 0:
        return None
    return wilson(min(max(accuracy, 0.0), 1.0) * count, count)


def speedup_of(trial: Mapping[str, Any]) -> str:
    """Write a trial's speed-up with its 95 % interval, where that was measured."""
    return times_between(trial.get("speedup"), trial.get("speedup_low"), trial.get("speedup_high"))
