"""Question d: does it help to measure coverage again between pruning steps."""

from __future__ import annotations

import polars as pl

from cleanai_ray.analysis.answers import Draft
from cleanai_ray.analysis.questions.base import Evidence, Question
from cleanai_ray.registry import QUESTIONS


@QUESTIONS.register("d")
class MeasuringBetweenSteps(Question):
    """Adaptive against coverage in several steps, over the coverage metrics that both have."""

    position = 50
    text = "Does measuring coverage again between steps (adaptive) help?"

    def draft(self, evidence: Evidence) -> Draft:
        """Compare the two; the metrics of one cell share nearly everything and are averaged into one observation."""
        missing = evidence.absent("adaptive", "coverage")
        several = evidence.trials.filter(pl.col("steps") > 1)
        if not missing and several.is_empty():
            missing = "Every trial prunes in one step, where adaptive is coverage: nothing is measured between steps."
        adaptive, coverage = (several.filter(pl.col("method") == name) for name in ("adaptive", "coverage"))
        shared = set(adaptive["coverage_metric"].drop_nulls()) & set(coverage["coverage_metric"].drop_nulls())
        is_shared = pl.col("coverage_metric").is_in(sorted(shared))
        found = evidence.compare_trials(adaptive.filter(is_shared), coverage.filter(is_shared))
        return Draft(found, "adaptive against coverage in several steps", missing=missing)
