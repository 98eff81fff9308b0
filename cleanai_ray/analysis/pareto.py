"""Pareto fronts: the trials that no other trial beats."""

from __future__ import annotations

import polars as pl


def pareto_front(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the trials that no other trial beats, by fewer MACs and at least the accuracy or the other way round.

    Args:
        frame: Trials with `macs` and `accuracy`.

    Returns:
        The front in order of rising MACs, one row for trials that are equal in both.
    """
    ordered = frame.sort(["macs", "accuracy"], descending=[False, True], maintain_order=True)
    best_so_far = pl.col("accuracy").cum_max().shift(1)
    return ordered.filter(best_so_far.is_null() | (pl.col("accuracy") > best_so_far))
