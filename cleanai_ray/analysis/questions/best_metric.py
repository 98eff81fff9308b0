"""Question a: is one coverage metric better than all others."""

from __future__ import annotations

import polars as pl

from cleanai_ray.analysis.answers import Draft
from cleanai_ray.analysis.comparisons import Comparison
from cleanai_ray.analysis.questions.base import Evidence, Question, metrics_by_mean
from cleanai_ray.registry import QUESTIONS


@QUESTIONS.register("a")
class BestMetric(Question):
    """The coverage metric with the highest mean against each of the others; the least clear lead decides."""

    position = 10
    text = "Does one coverage metric serve best?"

    def draft(self, evidence: Evidence) -> Draft:
        """Compare the best metric on average with every rival."""
        coverage = evidence.trials.filter(pl.col("method") == "coverage")
        metrics = sorted(set(coverage["coverage_metric"].drop_nulls()))
        if len(metrics) < 2:
            return Draft(missing="The study has fewer than two coverage metrics to compare.")
        own = {name: coverage.filter(pl.col("coverage_metric") == name) for name in metrics}
        order = metrics_by_mean(coverage)
        if not order:
            return Draft(missing="Every trial of coverage failed.")
        best = order[0]
        rivals = [name for name in metrics if name != best]
        found = [evidence.compare_trials(own[best], own[name]) for name in rivals]
        # It serves best only if it beats every rival, so the least clear comparison decides.
        weakest = max(range(len(rivals)), key=lambda index: _doubt(found[index]))
        clearer = f"Against its other {len(rivals) - 1} rivals the lead is clearer."
        remark = f"{clearer} By mean accuracy: {' > '.join(order)}."
        subject = f"{best}, the best on average, against {rivals[weakest]}"
        return Draft(found[weakest], subject, remark if len(rivals) > 1 else "")


def _doubt(found: Comparison) -> tuple[bool, float]:
    return found.p_value is None, found.p_value if found.p_value is not None else 0.0
