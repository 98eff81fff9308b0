"""Risk: pruned models that know next to nothing."""

from __future__ import annotations

from collections.abc import Iterator

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.near_chance import near_chance_limit
from cleanai_ray.analysis.numbers import percent
from cleanai_ray.analysis.risks.base import Check, Risk, shorten_list
from cleanai_ray.registry import RISKS


@RISKS.register("near_chance")
class NearChance(Check):
    """Pruned models that are broken, by the column `is_broken`."""

    position = 30
    looks_for = "trials near chance"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield one risk; blocking where the best trial is among them."""
        near = study.ranked.filter("is_broken")
        if near.is_empty():
            return
        lines = shorten_list(
            [f"{name}: {percent(value)}" for name, value in near.select("trial_id", "accuracy").rows()]
        )
        best = study.best
        if best is not None and best["trial_id"] in near["trial_id"]:
            reached = f"Even the best trial, at {percent(best['accuracy'])}, is near chance"
            sentence = f"{reached}: its 95 % interval ends {_limit(study)}."
            yield Risk("high", "near chance", sentence, lines, is_about_best=True, is_blocking=True)
        else:
            count = f"{len(near)} of {len(study.ok)}"
            sentence = f"Trials near chance: {count}; the 95 % interval of their accuracy ends {_limit(study)}."
            yield Risk("medium", "near chance", sentence, lines)


def _limit(study: StudyFrames) -> str:
    """Return where intervals end of models near chance, in words."""
    dense = study.dense.get("accuracy")
    if dense is None or study.chance is None:
        return "hardly above guessing"
    limit = near_chance_limit(dense, round(1 / study.chance))
    return f"at or below {percent(limit)}, where guessing gives {percent(study.chance)}"
