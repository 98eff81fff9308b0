"""Risk: fine-tuning that over-fitted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import percent, plural
from cleanai_ray.analysis.risks.base import Check, Risk, shorten_list
from cleanai_ray.registry import RISKS

OVERFIT_DROP = 0.005
"""Fall of the validation accuracy after the best epoch, as a fraction, that counts as over-fitting."""


@RISKS.register("over_fitting")
class OverFitting(Check):
    """Trials whose last epochs of fine-tuning were worse than an earlier one."""

    position = 100
    looks_for = "over-fitting"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield a risk of the best trial, and one of all others."""
        found = list(_over_fitted(study))
        best_id = study.best["trial_id"] if study.best is not None else None
        own = [row for row in found if row["trial_id"] == best_id]
        for row in own:
            sentence = (
                f"Fine-tuning of the best trial over-fitted: {study.finetune_score} fell from {percent(row['kept'])} "
                f"at epoch {row['best_epoch']} to {percent(row['last'])} at epoch {row['last_epoch']}; the best epoch "
                "was kept."
            )
            yield Risk("medium", "over-fitting", sentence, is_about_best=True)
        if len(found) > len(own):
            lines = [_peak_and_end(row) for row in found if row["trial_id"] != best_id]
            sentence = f"{plural(len(lines), 'other trial')} over-fitted while fine-tuning; the best epoch was kept."
            yield Risk("info", "over-fitting", sentence, shorten_list(lines))


def _peak_and_end(row: dict[str, Any]) -> str:
    kept, last = percent(row["kept"]), percent(row["last"])
    return f"{row['trial_id']}: {kept} at epoch {row['best_epoch']}, {last} at the end"


def _over_fitted(study: StudyFrames) -> Iterator[dict[str, Any]]:
    """Yield the trials whose last epoch is worse than their best: the first of the best epochs, and the last."""
    accuracy, epoch, step = pl.col("validation_accuracy"), pl.col("epoch"), pl.col("step").fill_null(0)
    epochs = study.history.drop_nulls(["epoch", "validation_accuracy"])
    epochs = epochs.join(study.ok.select("trial_id"), on="trial_id", how="semi").sort("trial_id", "epoch")
    # Epochs before the last pruning step trained a larger network.
    epochs = epochs.filter(step == step.max().over("trial_id"))
    # Where no epoch was better than the start, none was kept, and the last one cost nothing.
    epochs = epochs.filter(pl.col("is_best").fill_null(False).any().over("trial_id"))
    ends = epochs.group_by("trial_id", maintain_order=True).agg(
        epoch.get(accuracy.arg_max()).alias("best_epoch"),
        accuracy.max().alias("kept"),
        epoch.last().alias("last_epoch"),
        accuracy.last().alias("last"),
    )
    fell = (pl.col("last_epoch") > pl.col("best_epoch")) & (pl.col("kept") - pl.col("last") >= OVERFIT_DROP)
    yield from ends.filter(fell).iter_rows(named=True)
