"""Risk: pruned models that know next to nothing."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.intervals import chance_limit
from cleanai_ray.analysis.numbers import percent, plural
from cleanai_ray.analysis.risks.base import Check, Risk, shorten_list
from cleanai_ray.registry import RISKS


@RISKS.register("near_chance")
class NearChance(Check):
    """Pruned models that are broken, by the column `is_broken`."""

    position = 30
    looks_for = "trials near chance"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield one risk; blocking where the best trial is among them."""
        if study.chance is None:
            return
        counts = study.results["num_evaluated"].drop_nulls()
        limit = chance_limit(round(1 / study.chance), int(counts[0]) if len(counts) else None)
        near = study.ranked.filter(pl.col("accuracy") <= limit)
        if near.is_empty():
            return
        lines = shorten_list(
            [f"{trial_id}: {percent(value)}" for trial_id, value in near.select("trial_id", "accuracy").rows()]
        )
        numbers = f"at or below {percent(limit)}, where guessing gives {percent(study.chance)}"
        if study.best is not None and study.best["accuracy"] <= limit:
            sentence = f"Even the best trial, at {percent(study.best['accuracy'])}, is near chance: {numbers}."
            yield Risk("high", "near chance", sentence, lines, is_about_best=True, is_blocking=True)
        else:
            sentence = f"{len(near)} of {plural(len(study.ok), 'trial')} ended near chance: {numbers}."
            yield Risk("medium", "near chance", sentence, lines)
