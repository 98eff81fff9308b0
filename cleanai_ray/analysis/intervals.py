"""The statistics behind the words of a report: intervals of accuracies, chance, and how methods compare."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import percent, times_between

_Z95 = 1.959963984540054
"""The 97.5th percentile of the standard normal distribution."""

CONTROL = "random"
"""The method that every other one must beat."""


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval of an accuracy, as fractions."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.low:.1f} to {percent(self.high)}"

    def overlaps(self, other: Interval) -> bool:
        """Whether two intervals have a point in common."""
        return self.low <= other.high and other.low <= self.high


def wilson(accuracy: float, num_evaluated: int) -> Interval:
    """Return the 95 % score interval of Wilson (1927) for a share of `num_evaluated` images.

    Raises:
        ValueError: When `num_evaluated` is not positive or `accuracy` is not in [0, 1].
    """
    if num_evaluated <= 0:
        raise ValueError(f"num_evaluated is {num_evaluated}; allowed: at least 1")
    if not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy is {accuracy}; allowed: 0 to 1")
    spread = _Z95**2 / num_evaluated
    centre = (accuracy + spread / 2) / (1 + spread)
    half = math.sqrt(accuracy * (1 - accuracy) * spread + spread**2 / 4) / (1 + spread)
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


def interval_of(trial: dict[str, object], column: str = "accuracy") -> Interval | None:
    """Return the interval of a trial's accuracy; None where it, or the number of images, is not known."""
    accuracy, count = trial.get(column), trial.get("num_evaluated")
    if not isinstance(accuracy, float) or not isinstance(count, int) or count <= 0:
        return None
    return wilson(min(max(accuracy, 0.0), 1.0), count)


def speedup_of(trial: Mapping[str, Any]) -> str:
    """Write a trial's speed-up at batch 1 with its 95 % interval, where that was measured."""
    return times_between(trial.get("speedup"), trial["speedup_b1_low"], trial["speedup_b1_high"])


def chance_limit(num_classes: int, num_evaluated: int | None) -> float:
    """Return the accuracy up to which a model counts as guessing.

    That is one and a half times chance, or chance plus three standard errors where that is more.
    """
    chance = 1 / num_classes
    error = math.sqrt(chance * (1 - chance) / num_evaluated) if num_evaluated else 0.0
    return min(1.0, max(1.5 * chance, chance + 3 * error))


@dataclass(frozen=True)
class MethodRank:
    """How one method (with its coverage metric) did.

    Attributes:
        label: The method.
        num_trials: Trials of it that succeeded.
        mean_accuracy: Mean over the cells (ratio or budget, mode, steps) that all methods share; over the method's own
            cells where they share none.
        num_cells: The number of those cells.
        is_shared: Whether the mean is over shared cells.
        wins: Shared cells in which it is the best.
        gain_over_random: Mean difference to random pruning over the cells that both have, as a fraction; None for
            random itself and where there is nothing to compare with.
    """

    label: str
    num_trials: int
    mean_accuracy: float
    num_cells: int
    is_shared: bool
    wins: int
    gain_over_random: float | None


def rank_methods(study: StudyFrames) -> tuple[MethodRank, ...]:
    """Return every method that has a result, the best mean first."""
    if study.ok.is_empty():
        return ()
    keys = ["amount", "mode", "steps"]
    cells = study.ok.group_by(["label", *keys]).agg(pl.mean("accuracy"), pl.len().alias("trials"))
    num_labels = cells["label"].n_unique()
    is_common = pl.n_unique("label").over(keys) == num_labels
    common = cells.filter(is_common)
    best = common.filter(pl.col("accuracy") == pl.max("accuracy").over(keys))
    ranks = []
    for label in cells["label"].unique().sort():
        own = cells.filter(pl.col("label") == label)
        counted = own if common.is_empty() else common.filter(pl.col("label") == label)
        mean = counted["accuracy"].mean()
        assert isinstance(mean, float)
        ranks.append(
            MethodRank(
                label=label,
                num_trials=int(own["trials"].sum()),
                mean_accuracy=mean,
                num_cells=len(counted),
                is_shared=not common.is_empty(),
                wins=len(best.filter(pl.col("label") == label)),
                gain_over_random=_gain(own, cells.filter(pl.col("label") == CONTROL), keys),
            )
        )
    return tuple(sorted(ranks, key=lambda rank: (-rank.mean_accuracy, rank.label)))


def _gain(own: pl.DataFrame, control: pl.DataFrame, keys: list[str]) -> float | None:
    if control.is_empty() or own["label"][0] == CONTROL:
        return None
    both = own.join(control, on=keys, suffix="_control", nulls_equal=True)
    mean = (both["accuracy"] - both["accuracy_control"]).mean()
    return mean if isinstance(mean, float) else None
