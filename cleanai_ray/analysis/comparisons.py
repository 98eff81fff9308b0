"""Paired comparisons of methods over the cells that both have: effects with intervals and tests that agree.

The effect is the mean over cells (study, ratio or budget, mode, steps); draws and seeds are averaged within a cell. Its
error is that of `estimates`: what another draw and other images would change. Interval and p-value come from the same
distribution (`two_errors`), so that the interval excludes zero exactly where p < 0.05, also after a correction: of
`family` comparisons that are shown together, each is held to a level of 5 % / family (Bonferroni), and all intervals
hold at once.

Left out are pairs in which both models are near chance, and cells that are copies of another one: the same accuracies,
trial by trial, as where a method removes the same channels in both modes by construction.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from cleanai_ray.analysis.estimates import FEWEST_UNITS, ImageMeans, Matrix, Unit, estimate
from cleanai_ray.analysis.image_differences import ImageHits, image_means
from cleanai_ray.analysis.paired import POWER
from cleanai_ray.analysis.two_errors import quantile, tail

ALPHA = 0.05

__all__ = ["ALPHA", "FEWEST_UNITS", "Comparison", "Matrix", "compare", "compare_cells", "holm", "to_matrix"]


@dataclass(frozen=True)
class Comparison:
    """The mean difference of two things over the cells that both have.

    Attributes:
        effect: Mean difference, in the unit of the values; None where there is no pair.
        error: Its standard error; None where too little varies to tell.
        freedom: Degrees of freedom of the part of it that is not `image_error`.
        unit: What varies, besides the images.
        has_images: True if the error is that of other images as well.
        num_pairs: Pairs of trials that both succeeded.
        num_dropped: Pairs that were left out because one of their trials failed.
        num_units: Cells.
        num_positive: Cells whose difference is above zero.
        num_near_chance: Pairs that were left out because both models are near chance.
        num_copies: Cells that were left out as copies.
        family: Comparisons that are shown together.
        is_tested: False if zero is not a value to test against; there is then no p-value.
        by_amount: The comparison at each ratio or budget, where there are several.
        image_error: Part of the error, in squares, that other images alone would make.
    """

    effect: float | None = None
    error: float | None = None
    freedom: float = 1.0
    unit: Unit = "cells"
    has_images: bool = False
    num_pairs: int = 0
    num_dropped: int = 0
    num_units: int = 0
    num_positive: int = 0
    num_near_chance: int = 0
    num_copies: int = 0
    family: int = 1
    is_tested: bool = True
    by_amount: tuple[tuple[str, Comparison], ...] = ()
    image_error: float = 0.0

    def among(self, count: int) -> Comparison:
        """Return the comparison as one of `count` that are shown together, so that all intervals hold at once."""
        parts = tuple((amount, one.among(count)) for amount, one in self.by_amount)
        return replace(self, family=self.family * max(count, 1), by_amount=parts)

    @property
    def reach(self) -> float | None:
        """Half the width of the interval."""
        if self.error is None:
            return None
        return quantile(ALPHA / (2 * self.family), self._unit_error, self.freedom, self.image_error)

    @property
    def _unit_error(self) -> float:
        """The part of the error that is not that of other images."""
        assert self.error is not None
        return math.sqrt(max(self.error**2 - self.image_error**2, 0.0))

    @property
    def low(self) -> float | None:
        """Lower end of the interval of the family; None where there is none."""
        return None if self.effect is None or self.reach is None else self.effect - self.reach

    @property
    def high(self) -> float | None:
        """Upper end, likewise."""
        return None if self.effect is None or self.reach is None else self.effect + self.reach

    @property
    def p_value(self) -> float | None:
        """The two-sided p-value of a mean of zero, times the size of the family."""
        if self.effect is None or self.error is None or not self.is_tested:
            return None
        if self.error == 0:
            return float(self.effect == 0)
        return min(1.0, self.family * 2 * tail(abs(self.effect), self._unit_error, self.freedom, self.image_error))

    @property
    def detectable(self) -> float | None:
        """The least true difference that would be found with a power of 80 %.

        None where there is no interval, or one of no width, since nothing differed.
        """
        if self.reach is None or not self.error:
            return None
        return self.reach + quantile(1 - POWER, self._unit_error, self.freedom, self.image_error)

    @property
    def is_above_zero(self) -> bool:
        """True if the whole interval is above zero."""
        return self.low is not None and self.low > 0

    @property
    def is_below_zero(self) -> bool:
        """True if the whole interval is below zero."""
        return self.high is not None and self.high < 0

    @property
    def changes_sign(self) -> bool:
        """True if the effect is beyond doubt in both directions, at different ratios or budgets."""
        parts = [one for _, one in self.by_amount]
        return any(one.is_above_zero for one in parts) and any(one.is_below_zero for one in parts)


def compare(
    first: pl.DataFrame,
    second: pl.DataFrame,
    units: Sequence[str],
    value: str,
    *,
    grain: float = 0.0,
    images: ImageHits | None = None,
) -> Comparison:
    """Return the difference of two sets of trials, the first minus the second, over the cells and seeds of both.

    Several trials of a set in one cell and seed, such as a method's coverage metrics, are averaged. Where
    one of them failed, the pair is left out: its mean would be over other trials than in the other cells.

    Args:
        first: Trials with `units`, `seed`, `replicate`, `trial_id`, `chance` and `value` (null where it failed), as
            `cells.gather` returns them.
        second: The same.
        units: Columns that make a cell.
        value: The compared column.
        grain: Smallest step of a value; units are taken to vary by that much at the least.
        images: The images that each trial gets right, where `value` is the accuracy on them.
    """
    keys = [*units, "seed"]
    both = _means(first, keys, value).join(_means(second, keys, value), on=keys, nulls_equal=True, suffix="_second")
    other = f"{value}_second"
    good = both.drop_nulls([value, other])
    is_known = ((pl.col(value) > pl.col("chance")) | (pl.col(other) > pl.col("chance"))).fill_null(True)
    clear = good.filter(is_known).with_columns((pl.col(value) - pl.col(other)).alias("difference"))
    left = _without_copies(clear, units, value)
    found = replace(
        _compare(left, units, grain, images),
        num_pairs=len(clear),
        num_dropped=len(both) - len(good),
        num_near_chance=len(good) - len(clear),
        num_copies=_count_cells(clear, units) - _count_cells(left, units),
    )
    amounts = left["amount"].unique(maintain_order=True).sort() if "amount" in units else pl.Series([])
    if len(amounts) < 2:
        return found
    parts = tuple(
        (str(amount), _compare(left.filter(pl.col("amount") == amount), units, grain, images).among(len(amounts)))
        for amount in amounts
    )
    return replace(found, by_amount=parts)


def _compare(pairs: pl.DataFrame, units: Sequence[str], grain: float, images: ImageHits | None) -> Comparison:
    by_draw = pairs.group_by([*units, "replicate"]).agg(pl.mean("difference"))
    matrix = to_matrix(by_draw.rename({"replicate": "seed"}), units, "difference")
    return compare_cells(matrix, grain=grain, images=None if images is None else image_means(pairs, units, images))


def _count_cells(pairs: pl.DataFrame, units: Sequence[str]) -> int:
    return pairs.select(pl.struct(list(units)).n_unique()).item() if len(pairs) else 0


def _without_copies(pairs: pl.DataFrame, units: Sequence[str], value: str) -> pl.DataFrame:
    """Return pairs without the cells in which both sides have, seed by seed, the accuracies of an earlier cell.

    Cells of several ratios or budgets, or of several studies, are no copies of each other.
    """
    if pairs.is_empty():
        return pairs
    kept = [name for name in ("study", "amount") if name in units]
    ordered = pairs.sort([*units, "seed"], nulls_last=True)
    told = pl.struct("seed", value, f"{value}_second")
    cells = ordered.group_by(list(units), maintain_order=True).agg(told.alias("told"))
    first = cells.unique([*kept, "told"], keep="first", maintain_order=True).select(list(units))
    return ordered.join(first, on=list(units), how="semi", nulls_equal=True)


def _means(frame: pl.DataFrame, keys: list[str], value: str) -> pl.DataFrame:
    mean = pl.when(pl.col(value).is_null().any()).then(None).otherwise(pl.col(value).mean())
    return frame.group_by(keys).agg(mean.alias(value), pl.max("chance"), pl.first("replicate"), "trial_id")


def to_matrix(frame: pl.DataFrame, units: Sequence[str], value: str) -> Matrix:
    """Return values as cells x seeds, from a frame with one row per cell and seed; NaN where one is missing."""
    if frame.is_empty():
        return np.empty((0, 0))
    ordered = frame.sort([*units, "seed"], nulls_last=True)
    rows = ordered.select(pl.struct(list(units)).rank("dense").cast(pl.Int64) - 1).to_series().to_numpy()
    columns = ordered.select(pl.col("seed").fill_null(-1).rank("dense").cast(pl.Int64) - 1).to_series().to_numpy()
    matrix = np.full((rows.max() + 1, columns.max() + 1), np.nan)
    matrix[rows, columns] = ordered[value].to_numpy()
    return matrix


def compare_cells(differences: Matrix, *, grain: float = 0.0, images: ImageMeans | None = None) -> Comparison:
    """Return the mean of paired differences with its error; see `estimates`.

    Args:
        differences: Cells x draws; NaN where there is no pair.
        grain: Smallest step of a difference.
        images: The differences image by image, if they are known.
    """
    present = np.isfinite(differences).any(axis=1)
    if not present.any():
        return Comparison()
    cells = np.nanmean(differences[present], axis=1)
    counts = Comparison(
        float(cells.mean()),
        num_pairs=int(np.isfinite(differences).sum()),
        num_units=len(cells),
        num_positive=int((cells > 0).sum()),
    )
    found = estimate(differences[present], grain=grain, images=images)
    if found is None:
        return counts
    names = ("error", "freedom", "unit", "has_images", "image_error")
    return replace(counts, **{name: getattr(found, name) for name in names})


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected by Holm's procedure for their number; None stays None and does not count."""
    from statsmodels.stats.multitest import multipletests  # loads pandas

    known = [value for value in p_values if value is not None]
    # statsmodels first collects the garbage of the whole process, which can take most of a second.
    gc.freeze()
    try:
        corrected = iter(multipletests(known, alpha=ALPHA, method="holm")[1] if known else ())
    finally:
        gc.unfreeze()
    return [None if value is None else float(next(corrected)) for value in p_values]
