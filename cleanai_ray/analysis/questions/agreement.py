"""Question i: does coverage remove the channels that methods of weights and gradients remove."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from cleanai_ray.analysis.answers import Draft
from cleanai_ray.analysis.cells import CELL
from cleanai_ray.analysis.comparisons import compare_cells
from cleanai_ray.analysis.numbers import plural, signed
from cleanai_ray.analysis.questions.base import Evidence, Question
from cleanai_ray.analysis.removed_channels import correlation, removed_channels
from cleanai_ray.registry import QUESTIONS

IMPORTANCE = ("magnitude", "taylor")
"""The methods that coverage is compared with: they read weights and gradients."""

_MOST_PAIRS = 400


@QUESTIONS.register("i")
class Agreement(Question):
    """Channels that coverage removes against those that weights and gradients remove, for each group of layers."""

    position = 120
    text = "Are coverage and importance related?"
    unit = "correlation"

    def draft(self, evidence: Evidence) -> Draft:
        """Correlate what pairs of trials of one cell removed; a group of layers is one observation."""
        rows, num_pairs, num_dropped = _correlations(evidence)
        if not rows:
            return Draft(missing="No two trials of coverage and of magnitude or Taylor removed channels in one cell.")
        found = compare_cells(np.array([[value] for _, value in rows]))
        counted = replace(found, num_pairs=num_pairs, num_dropped=num_dropped)
        lowest, highest = (pick(rows, key=lambda row: row[1]) for pick in (min, max))
        remark = (
            f"By group of layers from {signed(lowest[1])} ({lowest[0]}) to {signed(highest[1])} ({highest[0]}). The "
            "tables hold which channels were removed, not their scores, so this is Spearman's correlation of removed "
            "or kept."
        )
        subject = f"Channels that coverage and magnitude or Taylor remove, over {plural(len(rows), 'group')} of layers"
        return Draft(counted, subject, remark)


def _correlations(evidence: Evidence) -> tuple[list[tuple[str, float]], int, int]:
    """Return the mean correlation of each group of layers, and how many pairs of trials were read and left out."""
    rows: list[tuple[str, float]] = []
    num_pairs = num_dropped = 0
    for name, study in evidence.studies.items():
        pairs, dropped = _pairs_of_methods(evidence.trials.filter(pl.col("study") == name))
        num_dropped += dropped
        ids = [trial_id for pair in pairs for trial_id in pair]
        groups = removed_channels(study, ids) if ids else {}
        num_pairs += len(pairs) if groups else 0
        for group, removed in groups.items():
            values = correlation(removed[::2], removed[1::2])
            if np.isfinite(values).any():
                title = f"{name}: {group}" if len(evidence.studies) > 1 else group
                rows.append((title, float(np.nanmean(values))))
    return rows, num_pairs, num_dropped


def _pairs_of_methods(trials: pl.DataFrame) -> tuple[list[tuple[str, str]], int]:
    keys = [*CELL, "seed"]
    columns = [*keys, "trial_id", "final"]
    coverage = trials.filter(pl.col("method") == "coverage").select(columns)
    other = trials.filter(pl.col("method").is_in(IMPORTANCE)).select(columns)
    both = coverage.join(other, on=keys, suffix="_other", nulls_equal=True)
    good = both.drop_nulls(["final", "final_other"]).sort("trial_id", "trial_id_other")
    num_dropped = len(both) - len(good)
    if len(good) > _MOST_PAIRS:
        good = good.gather_every(-(-len(good) // _MOST_PAIRS))
    return good.select("trial_id", "trial_id_other").rows(), num_dropped
