"""Average ranks of methods over cells, with Friedman's test and the critical difference of Nemenyi (Demsar 2006)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.intervals import CONFIDENCE

FEWEST_METHODS, FEWEST_CELLS = 3, 4

MANY_METHODS, MANY_CELLS = 5, 10
"""With more methods than the first, Friedman's test needs more cells than the second (Demsar 2006, section 3.2.2)."""

_CELL = ["amount", "mode", "steps"]


@dataclass(frozen=True)
class AverageRanks:
    """The mean ranks of methods over the cells (ratio or budget, mode, steps) in which all of them succeeded.

    Attributes:
        labels: The methods with their coverage metrics, the best mean rank first.
        ranks: Their mean ranks; 1 is the best, and ties share the mean of their places.
        num_cells: Number of these cells; seeds are averaged within a cell.
        p_value: The p-value of Friedman's test that all methods rank alike.
        critical_difference: Mean ranks that are farther apart than this differ at the level of 5 %, over all pairs.
    """

    labels: tuple[str, ...]
    ranks: tuple[float, ...]
    num_cells: int
    p_value: float
    critical_difference: float


def average_ranks(study: StudyFrames) -> AverageRanks | None:
    """Return the mean ranks of a study's methods; None with too few methods or cells.

    Cells of one ratio or budget in which every method has the accuracy that it has in another are counted once.
    """
    trials = study.ok.filter(pl.col("quantization") == study.base_quantization)
    labels = sorted(set(trials["label"]))
    if len(labels) < FEWEST_METHODS:
        return None
    cells = trials.group_by([*_CELL, "label"]).agg(pl.mean("accuracy"))
    wide = cells.pivot(on="label", index=_CELL, values="accuracy").drop_nulls(labels)
    wide = wide.unique(["amount", *labels], keep="first", maintain_order=True).select(labels)
    fewest = FEWEST_CELLS if len(labels) <= MANY_METHODS else MANY_CELLS + 1
    return rank_cells(wide.to_numpy(), labels) if len(wide) >= fewest else None


def rank_cells(accuracies: np.ndarray, labels: list[str]) -> AverageRanks:
    """Return the mean ranks of accuracies, cells x methods.

    The critical difference is q sqrt(k (k + 1) / (6 N)) for k methods and N cells, q being the quantile of the
    studentized range for infinitely many degrees of freedom, divided by sqrt(2).
    """
    from scipy import stats  # a second to load

    num_cells, num_methods = accuracies.shape
    ranks = stats.rankdata(-accuracies, axis=1).mean(axis=0)
    constant = bool((np.ptp(accuracies, axis=1) == 0).all())
    p_value = 1.0 if constant else float(stats.friedmanchisquare(*accuracies.T).pvalue)
    quantile = float(stats.studentized_range.ppf(CONFIDENCE, num_methods, np.inf)) / math.sqrt(2)
    difference = quantile * math.sqrt(num_methods * (num_methods + 1) / (6 * num_cells))
    order = sorted(range(num_methods), key=lambda index: (ranks[index], labels[index]))
    return AverageRanks(
        labels=tuple(labels[index] for index in order),
        ranks=tuple(float(ranks[index]) for index in order),
        num_cells=num_cells,
        p_value=p_value,
        critical_difference=difference,
    )
