"""The mean accuracies of methods over the cells that they share."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames

CONTROL = "random"
"""The method that every other method must beat."""


@dataclass(frozen=True)
class MethodRank:
    """The mean accuracy of one method (with its coverage metric), and how it compares with random.

    Attributes:
        label: The method.
        num_trials: Trials of it that succeeded.
        mean_accuracy: Mean over the cells (ratio or budget, mode, steps) that all methods share; over the method's own
            cells where they share none.
        num_cells: The number of those cells.
        is_shared: True if the mean is over shared cells.
        wins: Shared cells in which it is the best.
        gain_over_random: Mean difference to random pruning over the cells that both have, as a fraction; None for
            random itself, and where they share no cell.
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
