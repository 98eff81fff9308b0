"""Pareto fronts: the trials that no other trial beats."""

from __future__ import annotations

import polars as pl


def pareto_front(frame: pl.DataFrame, cost: str = "macs") -> pl.DataFrame:
    """Return the trials that no other trial beats, by a lower cost and at least the accuracy or the other way round.

    Args:
        frame: Trials with `accuracy` and the column of the cost.
        cost: The column of what a trial costs.

    Returns:
        The front in order of rising cost, one row for trials that are equal in both.
    """
    ordered = frame.sort([cost, "accuracy"], descending=[False, True], maintain_order=True)
    best_so_far = pl.col("accuracy").cum_max().shift(1)
    return ordered.filter(best_so_far.is_null() | (pl.col("accuracy") > best_so_far))
