"""Risks inside the pruned models: collapsed layers, warnings, over-fitting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import percent, plural
from cleanai_ray.analysis.risks.base import COLLAPSED, OVERFIT_DROP, Risk, shorten_list


def _collapsed_layers(study: StudyFrames) -> Iterator[Risk]:
    lost = 1 - pl.col("out_channels") / pl.col("out_channels_dense")
    collapsed = study.layers.filter(lost > COLLAPSED)
    if study.best is None or collapsed.is_empty():
        return
    own = collapsed.filter(pl.col("trial_id") == study.best["trial_id"])
    if len(own):
        rows = own.select("layer", "out_channels", "out_channels_dense").rows()
        lines = shorten_list([f"{layer}: {kept} of {dense} channels kept" for layer, kept, dense in rows])
        sentence = f"The best trial lost more than {COLLAPSED:.0%} of the channels of {plural(len(own), 'layer')}."
        yield Risk("medium", "collapsed layers", sentence.replace("%", " %"), lines, is_about_best=True)
    others = collapsed.filter(pl.col("trial_id") != study.best["trial_id"])["trial_id"].n_unique()
    if others:
        sentence = f"{plural(others, 'other trial')} lost more than {COLLAPSED:.0%} of the channels of a layer."
        yield Risk("info", "collapsed layers", sentence.replace("%", " %"))


def _trial_warnings(study: StudyFrames) -> Iterator[Risk]:
    rows = study.trials.select("trial_id", "warnings").explode("warnings").drop_nulls("warnings")
    if rows.is_empty():
        return
    best_id = study.best["trial_id"] if study.best is not None else None
    own = rows.filter(pl.col("trial_id") == best_id)["warnings"].to_list()
    if own:
        yield Risk("medium", "warnings", f"The best trial gave {plural(len(own), 'warning')}.", shorten_list(own), True)
    others = rows.filter(pl.col("trial_id").ne_missing(best_id))
    if len(others):
        count = others["trial_id"].n_unique()
        lines = [f"{trial_id}: {text}" for trial_id, text in others.rows()]
        yield Risk("info", "warnings", f"{plural(count, 'other trial')} gave warnings.", shorten_list(lines))


def _overfitting(study: StudyFrames) -> Iterator[Risk]:
    found = list(_overfitted(study))
    best_id = study.best["trial_id"] if study.best is not None else None
    own = [row for row in found if row["trial_id"] == best_id]
    for row in own:
        sentence = (
            f"Fine-tuning of the best trial over-fitted: {_measured(study)} fell from {percent(row['kept'])} at epoch "
            f"{row['best_epoch']} to {percent(row['last'])} at epoch {row['last_epoch']}; the best epoch was kept."
        )
        yield Risk("medium", "over-fitting", sentence, is_about_best=True)
    if len(found) > len(own):
        lines = [
            f"{row['trial_id']}: {percent(row['kept'])} at epoch {row['best_epoch']}, {percent(row['last'])} at the end"
            for row in found
            if row["trial_id"] != best_id
        ]
        sentence = f"{plural(len(lines), 'other trial')} over-fitted while fine-tuning; the best epoch was kept."
        yield Risk("info", "over-fitting", sentence, shorten_list(lines))


def _useless_training(study: StudyFrames) -> Iterator[Risk]:
    """Name the trials whose fine-tuning was for nothing: the model is as it was before."""
    if "best_epoch" not in study.ok.columns:
        return
    tuned = study.ok.filter(pl.col("best_epoch").is_not_null())
    useless = tuned.filter(pl.col("best_epoch") == 0)
    if useless.is_empty():
        return
    sentence = (
        f"No epoch of fine-tuning was better than its start, by {_measured(study)}, in {len(useless)} of "
        f"{plural(len(tuned), 'trial')}: the model before it was kept."
    )
    trials = shorten_list(useless["trial_id"].to_list())
    yield Risk("medium" if len(useless) == len(tuned) else "info", "fine-tuning in vain", sentence, trials)


def _measured(study: StudyFrames) -> str:
    """Return what fine-tuning goes by."""
    return "agreement with the dense model" if study.learns_without_labels else "validation accuracy"


def _overfitted(study: StudyFrames) -> Iterator[dict[str, Any]]:
    """Yield trials whose last epoch is worse than an earlier one: the best, of equals the first, and the last."""
    accuracy, epoch, step = pl.col("validation_accuracy"), pl.col("epoch"), pl.col("step").fill_null(0)
    epochs = study.history.drop_nulls(["epoch", "validation_accuracy"])
    epochs = epochs.join(study.ok.select("trial_id"), on="trial_id", how="semi").sort("trial_id", "epoch")
    # Epochs before the last pruning step trained a larger network.
    epochs = epochs.filter(step == step.max().over("trial_id"))
    # Where no epoch was better than the start, none was kept, and nothing was lost by the last one.
    epochs = epochs.filter(pl.col("is_best").fill_null(False).any().over("trial_id"))
    ends = epochs.group_by("trial_id", maintain_order=True).agg(
        epoch.get(accuracy.arg_max()).alias("best_epoch"),
        accuracy.max().alias("kept"),
        epoch.last().alias("last_epoch"),
        accuracy.last().alias("last"),
    )
    fell = (pl.col("last_epoch") > pl.col("best_epoch")) & (pl.col("kept") - pl.col("last") >= OVERFIT_DROP)
    yield from ends.filter(fell).iter_rows(named=True)


CHECKS = (_collapsed_layers, _trial_warnings, _overfitting, _useless_training)
"""Every check of this file."""
