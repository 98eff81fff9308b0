"""Risk: fine-tuning that gained nothing."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import plural
from cleanai_ray.analysis.risks.base import Check, Risk, shorten_list
from cleanai_ray.registry import RISKS


@RISKS.register("fine_tuning_without_gain")
class FineTuningWithoutGain(Check):
    """Trials in which no epoch of fine-tuning was better than the model it began with."""

    position = 110
    looks_for = "fine-tuning that gained nothing"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield one risk that names these trials."""
        if "best_epoch" not in study.ok.columns:
            return
        tuned = study.ok.filter(pl.col("best_epoch").is_not_null())
        useless = tuned.filter(pl.col("best_epoch") == 0)
        if useless.is_empty():
            return
        sentence = (
            f"In {len(useless)} of {plural(len(tuned), 'trial')} no epoch of fine-tuning improved "
            f"{study.finetune_score}: the model from before fine-tuning was kept."
        )
        trials = shorten_list(useless["trial_id"].to_list())
        yield Risk("medium" if len(useless) == len(tuned) else "info", "fine-tuning without gain", sentence, trials)
