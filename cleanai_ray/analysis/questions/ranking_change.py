"""Question g: does repair change which methods are ahead."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import polars as pl
from scipy import stats

from cleanai_ray.analysis.answers import AnswerVerdict, Draft
from cleanai_ray.analysis.cells import CELL
from cleanai_ray.analysis.comparisons import Comparison, Matrix, compare_cells, to_matrix
from cleanai_ray.analysis.questions.base import Evidence, Question
from cleanai_ray.registry import QUESTIONS

SAME_RANKING = 0.5
"""Rank correlation above which, with its whole interval, repair leaves the ranking as it is."""


@QUESTIONS.register("g")
class RankingChange(Question):
    """The order of the methods before repair against the order after it, cell by cell."""

    position = 90
    text = "Does repair change the ranking of the methods?"
    unit = "rank correlation"

    def draft(self, evidence: Evidence) -> Draft:
        """Compare the two orders.

        Yes where two methods change places, each being ahead beyond doubt where it is ahead (Bonferroni over all pairs
        of methods); no where none do and the rank correlation is above `SAME_RANKING` with its whole interval.
        """
        both = evidence.trials.drop_nulls(["pruned", "repaired"])
        if both.is_empty():
            return Draft(missing="No trial has an accuracy both before and after repair.")
        found = _correlation(both)
        if found.effect is None:
            return Draft(missing="No cell has three methods to rank both before and after repair.")
        swaps = _swaps(evidence)
        remark = f"Places change: {', '.join(swaps)}." if swaps else "No two methods change places beyond doubt."
        is_same = not swaps and found.low is not None and found.low > SAME_RANKING
        verdict: AnswerVerdict = "yes" if swaps else "no" if is_same else "cannot tell"
        subject = "Order of the methods before repair against after it, one correlation for each cell and seed"
        return Draft(replace(found, is_tested=False), subject, remark, settled=verdict)


def _correlation(both: pl.DataFrame) -> Comparison:
    keys = [*CELL, "seed"]
    rows = []
    for names, cell in both.group_by(keys, maintain_order=True):
        means = cell.group_by("label").agg(pl.mean("pruned"), pl.mean("repaired"))
        before, after = means["pruned"].to_numpy(), means["repaired"].to_numpy()
        if len(means) >= 3 and np.ptp(before) > 0 and np.ptp(after) > 0:
            rows.append((*names, float(stats.spearmanr(before, after).statistic)))
    if not rows:
        return Comparison()
    frame = pl.DataFrame(rows, schema=[*keys, "correlation"], orient="row")
    matrix: Matrix = to_matrix(frame, CELL, "correlation")
    return compare_cells(matrix)


def _swaps(evidence: Evidence) -> list[str]:
    """Return the pairs of methods that change places beyond doubt, in words."""
    methods = sorted(set(evidence.trials["method"]))
    pairs = list(itertools.combinations(methods, 2))
    found = []
    for first, second in pairs:
        before, after = (evidence.compare(first, second, stage).among(len(pairs)) for stage in ("pruned", "repaired"))
        for ahead, behind, is_first in ((first, second, True), (second, first, False)):
            led, lost = (
                (before.is_above_zero, after.is_below_zero) if is_first else (before.is_below_zero, after.is_above_zero)
            )
            if led and lost:
                found.append(f"{ahead} is ahead of {behind} before, and behind it after")
    return found
