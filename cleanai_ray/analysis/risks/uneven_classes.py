"""Risk: classes that pay for the rest."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from cleanai_ray.analysis.comparisons import ALPHA, holm
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.image_evidence import by_class
from cleanai_ray.analysis.numbers import p_text, percent
from cleanai_ray.analysis.paired import PairedDifference, exact_p
from cleanai_ray.analysis.risks.base import Check, Risk, shorten_list
from cleanai_ray.registry import RISKS
from cleanai_ray.storage.image_schemas import TEST

NOTABLE_LOSS = 10.0
"""Points that a class must lose to be named where single images were not kept, so that there is no test."""


@RISKS.register("uneven_classes")
class UnevenClasses(Check):
    """Classes that the chosen trial recognises worse than the dense model does, beyond chance."""

    position = 240
    looks_for = "classes that lost accuracy beyond chance"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield one risk that lists these classes: McNemar's exact test of each, corrected for all of them by Holm."""
        best = study.best
        if best is None:
            return
        found = by_class(study, best["trial_id"], TEST if study.choice.has_test_images else None)
        if not found:
            yield from _untested(study, best["trial_id"])
            return
        corrected = holm([exact_p(pair.lost, pair.gained) for pair in found.values()])
        worse = [
            (pair.effect, label, pair, p_value)
            for (label, pair), p_value in zip(found.items(), corrected, strict=True)
            if p_value is not None and p_value < ALPHA and pair.lost > pair.gained
        ]
        if not worse:
            return
        lines = [_line(study, label, pair, p_value) for _, label, pair, p_value in sorted(worse)]
        sentence = (
            f"{len(worse)} of {len(found)} classes lost accuracy with the best trial beyond chance (McNemar's exact "
            f"test of each class, Holm's correction); the largest loss is {-min(worse)[0]:.1f} points."
        )
        yield Risk("medium", "uneven classes", sentence, shorten_list(lines), is_about_best=True)


def _line(study: StudyFrames, label: int, pair: PairedDifference, p_value: float) -> str:
    return (
        f"class {label}: {pair.lost} of {pair.num_images} images lost and {pair.gained} gained, "
        f"{-pair.effect:.1f} points in all, {p_text(p_value)}"
    )


def _untested(study: StudyFrames, trial_id: str) -> Iterator[Risk]:
    """Yield for information what classes lost much, where it cannot be tested."""
    own = study.classes.filter(pl.col("trial_id") == trial_id).drop_nulls(["change", "num_evaluated"])
    lost = own.filter(100 * pl.col("change") <= -NOTABLE_LOSS).sort(["change", "label"])
    if len(lost):
        columns = ("label", "accuracy_dense", "accuracy", "num_evaluated")
        lines = [
            f"class {label}: from {percent(dense)} to {percent(after)} of {count} images"
            for label, dense, after, count in lost.select(columns).rows()
        ]
        sentence = (
            f"{len(lost)} of {len(own)} classes lost {NOTABLE_LOSS:g} points or more with the best trial; single "
            "images were not kept, so it is not known if that may be chance."
        )
        yield Risk("info", "uneven classes", sentence, shorten_list(lines), is_about_best=True)
