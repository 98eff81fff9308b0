"""Paired comparisons of methods over the cells that both have: effects with intervals, tests, and Holm's correction.

Everything here depends on what counts as one observation. Trials of one study share the dense model, the evaluated
images and the calibration samples; trials of one seed share random numbers; a method that draws no random numbers has
the same accuracy for every seed. Pairs of trials are therefore not independent. The unit is the *cell* (study, ratio or
budget, mode, steps); seeds are replicates that are averaged within a cell, as Demsar (JMLR 7, 2006) averages runs
within a data set. An answer then says what to expect at another ratio or mode of this model and data. Cells of one
ratio are taken as exchangeable, and what they share does not widen the interval: answers hold for this model and these
images only.

A seed may also favour one method in every cell. Where a Friedman test over three or more seeds hints at that
(p < 0.25), the difference must also exceed the spread between seeds, and the bootstrap draws cells and seeds crosswise
(the pigeonhole bootstrap of Owen, Annals of Applied Statistics 1, 2007). With fewer than three cells the seeds are the
unit, if at least three of them differ; with fewer of both there is no test.

A lead may be the same number of points everywhere, or grow with what pruning costs: methods that differ by tenths of a
point at three quarters of the MACs can be points apart at half. Both readings are tested, the second on differences
divided by the accuracy that the two methods lose in the cell; the clearer one counts, at twice its p-value.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats

from cleanai_ray.analysis.intervals import CONFIDENCE

Matrix = NDArray[np.float64]

ALPHA = 0.05
FEWEST_UNITS = 3
"""The fewest cells (or seeds) that a test needs."""

RANKS_FROM = 12
"""Units from which Wilcoxon's signed-rank test replaces the t-test: fewer units have too few patterns of signs."""

LEAST_LOSS = 0.5
"""The least loss, in points, that differences are divided by where a lead may grow with the loss."""

_SHARED_SEED = 0.25
_RESAMPLES = 999


@dataclass(frozen=True)
class Comparison:
    """The mean difference of two things over the cells that both have.

    Attributes:
        effect: Mean difference, in the unit of the values; None where there is no pair.
        low: Lower end of the 95 % interval: the bootstrap's standard error times the quantile of Student's t, since
            percentiles of few units are too narrow (Hesterberg, The American Statistician 69, 2015). None below three
            units.
        high: Upper end.
        p_value: Two-sided p-value of the t-test or of Wilcoxon's test; None below three units.
        num_pairs: Pairs of trials that both succeeded.
        num_dropped: Pairs that were left out because one of their trials failed.
        num_units: Cells, or seeds where there are fewer than three cells.
        num_positive: Units whose difference is above zero.
    """

    effect: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    num_pairs: int = 0
    num_dropped: int = 0
    num_units: int = 0
    num_positive: int = 0

    def is_above_zero(self, p_value: float | None) -> bool:
        """Return whether the effect is positive beyond doubt, given its corrected p-value."""
        return p_value is not None and p_value < ALPHA and self.low is not None and self.low > 0

    def is_below_zero(self, p_value: float | None) -> bool:
        """Return whether the effect is negative beyond doubt, given its corrected p-value."""
        return p_value is not None and p_value < ALPHA and self.high is not None and self.high < 0


def compare(
    first: pl.DataFrame, second: pl.DataFrame, units: Sequence[str], value: str, *, grain: float = 0.0
) -> Comparison:
    """Return the difference of two sets of trials, the first minus the second, over the cells and seeds of both.

    Several trials of a set in one cell and seed, such as a method's coverage metrics, are averaged. Where
    one of them failed, the pair is left out: its mean would be over other trials than in the other cells.

    Args:
        first: Trials with `units`, `seed`, `dense` and `value` (null where it failed).
        second: The same.
        units: Columns that make a cell.
        value: The compared column.
        grain: Smallest step of a value; units are taken to vary by that much at the least.
    """
    keys = [*units, "seed"]
    both = _means(first, keys, value).join(_means(second, keys, value), on=keys, nulls_equal=True, suffix="_second")
    good = both.drop_nulls([value, f"{value}_second"]).with_columns(
        (pl.col(value) - pl.col(f"{value}_second")).alias("difference"),
        (pl.col("dense") - (pl.col(value) + pl.col(f"{value}_second")) / 2).alias("lost"),
    )
    found = compare_cells(
        to_matrix(good, units, "difference"), grain=grain, lost=_mean_rows(to_matrix(good, units, "lost"))
    )
    return replace(found, num_pairs=len(good), num_dropped=len(both) - len(good))


def _mean_rows(matrix: Matrix) -> Matrix:
    known = np.isfinite(matrix)
    return np.where(known, matrix, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)


def _means(frame: pl.DataFrame, keys: list[str], value: str) -> pl.DataFrame:
    mean = pl.when(pl.col(value).is_null().any()).then(None).otherwise(pl.col(value).mean())
    return frame.group_by(keys).agg(mean.alias(value), pl.mean("dense"))


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


def compare_cells(differences: Matrix, *, grain: float = 0.0, lost: Matrix | None = None) -> Comparison:
    """Return the mean of paired differences with its interval and p-value; see the module for the units.

    Args:
        differences: Cells x seeds; NaN where there is no pair.
        grain: Smallest step of a difference.
        lost: Points that pruning costs in each cell; given where a lead may grow with them.
    """
    present = np.isfinite(differences).any(axis=1)
    num_pairs = int(np.isfinite(differences).sum())
    if not num_pairs:
        return Comparison()
    differences = differences[present]
    cells = np.nanmean(differences, axis=1)
    effect = float(cells.mean())
    counts = Comparison(effect, num_pairs=num_pairs, num_units=len(cells), num_positive=int((cells > 0).sum()))
    judged = _judge(differences, grain)
    if judged is None:
        return counts
    p_value, width = judged
    if lost is not None and len(cells) >= FEWEST_UNITS:
        share = np.maximum(lost[present], LEAST_LOSS)
        share /= share.mean()
        in_proportion = _judge(differences / share[:, None], grain)
        assert in_proportion is not None
        p_value, width = min(judged, in_proportion)
        p_value = min(1.0, 2 * p_value)
    return replace(counts, low=effect - width, high=effect + width, p_value=p_value)


def _judge(differences: Matrix, grain: float) -> tuple[float, float] | None:
    """Return the p-value of a mean of zero and half the width of its interval; None where there are too few units."""
    cells = np.nanmean(differences, axis=1)
    complete = differences[np.isfinite(differences).all(axis=1)]
    seeds = complete.mean(axis=0) if len(complete) else np.empty(0)
    if len(cells) >= FEWEST_UNITS:
        p_value, error, weakest = _p_value(cells, grain), _bootstrap_error(cells, grain), len(cells)
        if _seeds_matter(complete):
            p_value = max(p_value, _p_value(seeds, grain))
            error = max(error, _crossed_error(complete))
            weakest = min(len(cells), len(seeds))
    elif len(seeds) >= FEWEST_UNITS and np.ptp(complete, axis=1).max() > 1e-9:
        p_value, error, weakest = _p_value(seeds, grain), _bootstrap_error(seeds, grain), len(seeds)
    else:
        return None
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, weakest - 1) * np.sqrt(weakest / (weakest - 1))
    return p_value, float(quantile * error)


def _p_value(units: Matrix, grain: float) -> float:
    if not np.any(units):
        return 1.0
    if len(units) >= RANKS_FROM:
        return float(stats.wilcoxon(units).pvalue)
    error = max(units.std(ddof=1), grain) / np.sqrt(len(units))
    return float(2 * stats.t.sf(abs(units.mean()) / error, len(units) - 1)) if error > 0 else 0.0


def _bootstrap_error(units: Matrix, grain: float) -> float:
    """Return the bootstrap's standard error of a mean; units are taken to vary by at least `grain`."""
    floor = grain / np.sqrt(len(units))
    if np.ptp(units) == 0:
        return float(floor)
    # Seeded: a report made twice from the same tables says the same.
    drawn = stats.bootstrap((units,), np.mean, n_resamples=_RESAMPLES, method="percentile", rng=0)
    return float(max(drawn.standard_error, floor))


def _crossed_error(differences: Matrix) -> float:
    """Return the standard error of the mean when cells and seeds are drawn, each with replacement and crosswise."""
    indices = [np.arange(size) for size in differences.shape]

    def mean(cells: NDArray[np.int64], seeds: NDArray[np.int64], axis: int = -1) -> Matrix:
        chosen = differences[cells[..., :, None], seeds[..., None, :]]
        return np.asarray(chosen.mean(axis=(-2, -1)))

    drawn = stats.bootstrap(indices, mean, n_resamples=_RESAMPLES, method="percentile", vectorized=True, rng=0)
    return float(drawn.standard_error)


def _seeds_matter(complete: Matrix) -> bool:
    """Return whether differences hint at seeds that favour one side in every cell."""
    if len(complete) < 2 or complete.shape[1] < FEWEST_UNITS or not np.ptp(complete, axis=1).any():
        return False
    return bool(stats.friedmanchisquare(*complete.T).pvalue < _SHARED_SEED)


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
