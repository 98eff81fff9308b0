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
        of methods and all questions); no where none do and the rank correlation is above `SAME_RANKING` with its whole
        interval.
        """
        both = evidence.trials.drop_nulls(["pruned", "repaired"])
        if both.is_empty():
            return Draft(missing="No trial has an accuracy both before and after repair.")
        found = _correlation(both)
        if found.effect is None:
            return Draft(missing="No cell has three methods to rank both before and after repair.")
        pairs = _pairs(evidence)
        subject = "Order of the methods before repair against after it, one correlation for each cell and seed"
        untested = replace(found, is_tested=False)
        return Draft(untested, subject, resolve=lambda own: _resolve(own, pairs), threshold=SAME_RANKING)


_Pairs = dict[tuple[str, str], tuple[Comparison, Comparison]]
"""Two methods, compared before repair and after it."""


def _resolve(found: Comparison, pairs: _Pairs) -> tuple[AnswerVerdict, str]:
    swaps = _swaps(pairs, found.family)
    remark = f"Places change: {', '.join(swaps)}." if swaps else "No two methods change places beyond doubt."
    is_same = not swaps and found.low is not None and found.low > SAME_RANKING
    return ("yes" if swaps else "no" if is_same else "cannot tell"), remark


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


def _pairs(evidence: Evidence) -> _Pairs:
    """Return every pair of methods, compared before repair and after it."""
    return {
        pair: (evidence.compare(*pair, "pruned"), evidence.compare(*pair, "repaired"))
        for pair in itertools.combinations(sorted(set(evidence.trials["method"])), 2)
    }


def _swaps(pairs: _Pairs, family: int) -> list[str]:
    """Return the pairs of methods that change places beyond doubt, in words, as one of so many questions."""
    found = []
    for (first, second), compared in pairs.items():
        before, after = (one.among(len(pairs) * family) for one in compared)
        for ahead, behind, led, lost in (
            (first, second, before.is_above_zero, after.is_below_zero),
            (second, first, before.is_below_zero, after.is_above_zero),
        ):
            if led and lost:
                found.append(f"{ahead} is ahead of {behind} before, and behind it after")
    return found
