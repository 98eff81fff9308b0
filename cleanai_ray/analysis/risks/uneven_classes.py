"""Risk: classes that pay for the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cleanai_ray.analysis.class_changes import ClassChange, class_changes
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import p_text, plural
from cleanai_ray.analysis.risks.base import Check, Risk, shorten_list
from cleanai_ray.registry import RISKS

NOTABLE_LOSS = 10.0
"""Points that a class must lose to be named where single images were not kept, so that there is no test."""


@RISKS.register("uneven_classes")
class UnevenClasses(Check):
    """Classes that the chosen trial recognises worse than the dense model does, beyond chance."""

    position = 240
    looks_for = "classes that lost accuracy beyond chance"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield one risk that lists these classes: McNemar's exact test of each, corrected for all of them by Holm."""
        found = class_changes(study)
        if any(one.p_value is None for one in found):
            yield from _untested(found)
            return
        worse = [one for one in found if one.is_worse]
        if not worse:
            return
        lines = [f"{one}, {p_text(one.p_value or 0.0)}" for one in worse]
        largest = 100 * (worse[0].dense - worse[0].accuracy)
        sentence = (
            f"{len(worse)} of {plural(len(found), 'class')} lost accuracy with the best trial beyond chance "
            f"(McNemar's exact "
            f"test of each class, Holm's correction); the largest loss is {largest:.1f} points."
        )
        yield Risk("medium", "uneven classes", sentence, shorten_list(lines), is_about_best=True)


def _untested(found: Sequence[ClassChange]) -> Iterator[Risk]:
    """Yield for information what classes lost much, where it cannot be tested."""
    lost = [str(one) for one in found if round(100 * (one.accuracy - one.dense), 9) <= -NOTABLE_LOSS]
    if lost:
        sentence = (
            f"{len(lost)} of {plural(len(found), 'class')} lost {NOTABLE_LOSS:g} points or more with the best "
            f"trial; single "
            "images were not kept, so it is not known if that may be chance."
        )
        yield Risk("info", "uneven classes", sentence, shorten_list(lost), is_about_best=True)
