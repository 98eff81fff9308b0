"""Risk: accuracy that fine-tuning cost."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import percent, plural
from cleanai_ray.analysis.risks.base import Check, Risk, shorten_list
from cleanai_ray.registry import RISKS

LOST = 0.005
"""Fall from before fine-tuning to after it, as a fraction, that counts as lost; less is within chance."""


@RISKS.register("lost_in_fine_tuning")
class LostInFineTuning(Check):
    """A chosen trial, or most trials, that fine-tuning made worse on the evaluation images."""

    position = 112
    looks_for = "accuracy lost in fine-tuning"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield one risk, with the trials that lost most first."""
        columns = ("accuracy_pruned", "accuracy_repaired", "accuracy_finetuned")
        if not set(columns) <= set(study.ok.columns):
            return
        before = pl.coalesce("accuracy_repaired", "accuracy_pruned")
        tuned = study.ok.select("trial_id", "accuracy_finetuned", before=before).drop_nulls()
        tuned = tuned.with_columns(lost=pl.col("before") - pl.col("accuracy_finetuned"))
        worse = tuned.filter(pl.col("lost") >= LOST).sort("lost", descending=True, maintain_order=True)
        best_id = study.best["trial_id"] if study.best is not None else None
        is_about_best = best_id in worse["trial_id"].to_list()
        if not is_about_best and 2 * len(worse) <= len(tuned):
            return
        sentence = (
            f"Fine-tuning made {len(worse)} of {plural(len(tuned), 'trial')} worse by {100 * LOST:g} points or more, "
            f"up to {100 * worse['lost'][0]:.1f} points{', the chosen trial among them' if is_about_best else ''}: "
            "a lower finetune.learning_rate, or finetune.epochs: 0, may serve."
        )
        lines = [
            f"{row['trial_id']}: {percent(row['before'])} before, {percent(row['accuracy_finetuned'])} after"
            for row in worse.iter_rows(named=True)
        ]
        yield Risk("medium", "accuracy lost in fine-tuning", sentence, shorten_list(lines), is_about_best)
