"""Whether coverage removes the channels that methods of weights and gradients remove."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import polars as pl

from cleanai_ray.analysis.answers import Draft, signed
from cleanai_ray.analysis.cells import CELL
from cleanai_ray.analysis.comparisons import Comparison, compare_cells
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import plural
from cleanai_ray.analysis.removed_channels import correlation, removed_channels

IMPORTANCE = ("magnitude", "taylor")
"""Methods that read weights and gradients, which coverage is compared with."""

_MOST_PAIRS = 400


def relation_draft(studies: Mapping[str, StudyFrames], trials: pl.DataFrame) -> Draft:
    """Compare what coverage removes with what methods of weights and gradients remove, group of layers by group."""
    question = "Are coverage and importance related?"
    rows: list[tuple[str, float]] = []
    num_pairs = num_dropped = 0
    for name, study in studies.items():
        own = trials.filter(pl.col("study") == name)
        pairs, dropped = _pairs_of_methods(own)
        num_dropped += dropped
        ids = [trial_id for pair in pairs for trial_id in pair]
        groups = removed_channels(study, ids) if ids else {}
        num_pairs += len(pairs) if groups else 0
        for group, removed in groups.items():
            values = correlation(removed[::2], removed[1::2])
            if np.isfinite(values).any():
                rows.append((f"{name}: {group}" if len(studies) > 1 else group, float(np.nanmean(values))))
    if not rows:
        missing = "No two trials of coverage and of magnitude or Taylor removed channels in the same cell."
        return Draft("i", question, missing=missing, unit="correlation")
    found = compare_cells(np.array([[value] for _, value in rows]))
    counted = Comparison(
        found.effect, found.low, found.high, found.p_value, num_pairs, num_dropped, len(rows), found.num_positive
    )
    lowest, highest = (pick(rows, key=lambda row: row[1]) for pick in (min, max))
    remark = (
        f"By group of layers from {signed(lowest[1])} ({lowest[0]}) to {signed(highest[1])} ({highest[0]}). The tables "
        "hold which channels went, not their scores: it is Spearman's correlation of removed or kept."
    )
    subject = f"What coverage and magnitude or Taylor remove, over {plural(len(rows), 'group')} of layers"
    return Draft("i", question, counted, subject, remark, unit="correlation")


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
