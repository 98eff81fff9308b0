"""Risk: classes that pay for the rest."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import percent
from cleanai_ray.analysis.risks.base import Check, Risk, shorten_list
from cleanai_ray.registry import RISKS

UNFAIR_FACTOR, LEAST_CLASS_LOSS = 3.0, 2.0
"""A class counts as sacrificed from this multiple of the mean loss, and from this many points and two images."""


@RISKS.register("uneven_classes")
class UnevenClasses(Check):
    """Classes that lost far more accuracy with the best trial than the mean class."""

    position = 240
    looks_for = "classes that lost far more than the mean"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield one risk that lists these classes."""
        best = study.best
        if best is None:
            return
        own = study.classes.filter(pl.col("trial_id") == best["trial_id"]).drop_nulls(["change", "num_evaluated"])
        total = int(own["num_evaluated"].sum())
        if not total:
            return
        mean = -100 * float((own["change"] * own["num_evaluated"]).sum()) / total
        lost = (-100 * pl.col("change")).alias("lost")
        least = max(UNFAIR_FACTOR * max(mean, 0.0), LEAST_CLASS_LOSS)
        unfair = own.with_columns(lost).filter(
            (pl.col("lost") > least) & (pl.col("lost") / 100 * pl.col("num_evaluated") > 1.5)
        )
        if unfair.is_empty():
            return
        rows = unfair.sort(["lost", "label"], descending=[True, False])
        lines = [
            f"class {label}: {percent(after)} of {count} images, dense {percent(dense)}"
            for label, after, count, dense in rows.select("label", "accuracy", "num_evaluated", "accuracy_dense").rows()
        ]
        limit = f"{UNFAIR_FACTOR:g} times the mean of {mean:.1f} points"
        if least == LEAST_CLASS_LOSS:
            limit = f"{least:g} points, while accuracy as a whole {'falls' if mean > 0 else 'rises'} by {abs(mean):.1f}"
        sentence = (
            f"{len(unfair)} of {len(own)} classes lost more with the best trial than {limit}; the largest loss is "
            f"{rows['lost'][0]:.1f} points."
        )
        yield Risk("medium", "uneven classes", sentence, shorten_list(lines), is_about_best=True)
