"""Risk: trials that gave warnings."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import plural
from cleanai_ray.analysis.risks.base import Check, Risk, shorten_list
from cleanai_ray.registry import RISKS


@RISKS.register("trial_warnings")
class TrialWarnings(Check):
    """Warnings of trials."""

    position = 90
    looks_for = "warnings of trials"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield a risk of the best trial, and one of all others."""
        rows = study.trials.select("trial_id", "warnings").explode("warnings").drop_nulls("warnings")
        if rows.is_empty():
            return
        best_id = study.best["trial_id"] if study.best is not None else None
        own = rows.filter(pl.col("trial_id") == best_id)["warnings"].to_list()
        if own:
            yield Risk(
                "medium", "warnings", f"The best trial gave {plural(len(own), 'warning')}.", shorten_list(own), True
            )
        others = rows.filter(pl.col("trial_id").ne_missing(best_id))
        if len(others):
            count = others["trial_id"].n_unique()
            lines = [f"{trial_id}: {text}" for trial_id, text in others.rows()]
            yield Risk("info", "warnings", f"{plural(count, 'other trial')} gave warnings.", shorten_list(lines))
