"""Risk: accuracy that pruning cost."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import percent, plural
from cleanai_ray.analysis.risks.base import BLOCKING_LOSS, BLOCKING_SHARE, LARGE_LOSS, Check, Risk, Severity
from cleanai_ray.analysis.score_words import compared_text, is_counted
from cleanai_ray.registry import RISKS


@RISKS.register("accuracy_loss")
class AccuracyLoss(Check):
    """A best trial, or else other trials, that lose more than a point against the dense model."""

    position = 40
    looks_for = "accuracy lost against dense"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield one risk; blocking where the best trial lost more than `BLOCKING_LOSS`."""
        best = study.best
        if best is None or best["loss_points"] is None:
            return
        lost = best["loss_points"]
        too_much = not is_counted(best) and lost > 100 * BLOCKING_SHARE * best["accuracy_dense"]
        if lost > LARGE_LOSS or too_much:
            blocking = lost > BLOCKING_LOSS or too_much
            where = " on the test images" if study.choice.has_test_images else ""
            sentence = (
                f"The best trial loses {lost:.1f} points against the dense model{where} "
                f"({compared_text(best)} against {percent(best['accuracy_dense'])})."
            )
            severity: Severity = "high" if blocking else "medium"
            yield Risk(severity, "accuracy loss", sentence, is_about_best=True, is_blocking=blocking)
        worse = study.ok.filter(pl.col("loss_points") > LARGE_LOSS)
        if lost <= LARGE_LOSS and len(worse):
            largest = max(worse["loss_points"])
            where = " on all scored images" if study.choice.has_test_images else ""
            sentence = (
                f"{len(worse)} of {plural(len(study.ok), 'trial')} lose more than {LARGE_LOSS:g} point against the "
                f"dense model{where}, up to {largest:.1f} points."
            )
            yield Risk("info", "accuracy loss", sentence)
