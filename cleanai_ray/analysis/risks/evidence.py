"""Risks of the evidence: samples that were skipped, classes that paid for the rest, luck of a seed, few samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames, as_mapping
from cleanai_ray.analysis.numbers import percent, plural
from cleanai_ray.analysis.risks.base import LARGE_LOSS, Risk, shorten_list

FEW_CALIBRATION_SAMPLES, FEW_A_CLASS = 128, 5
"""Calibration images below which statistics are taken to be unreliable: in all, and a class."""

UNFAIR_FACTOR, LEAST_CLASS_LOSS = 3.0, 2.0
"""A class counts as sacrificed from this multiple of the mean loss, and from this many points and two images."""

_CELL = ["amount", "mode", "steps", "calibration_samples", "calibration_seed"]
"""Here, luck is that of a trial's seed alone."""


def _unreadable(study: StudyFrames) -> Iterator[Risk]:
    found = study.environment.get("unreadable_samples")
    if not isinstance(found, Mapping) or not found:
        return
    skipped = plural(len(found), "sample")
    sentence = (
        f"{skipped} could not be read and {'was' if len(found) == 1 else 'were'} left out (data.skip_unreadable)."
    )
    lines = tuple(f"{where}: {' '.join(str(reason).split())}" for where, reason in sorted(found.items()))
    yield Risk("medium", "unreadable samples", sentence, lines)


def _classes(study: StudyFrames) -> Iterator[Risk]:
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
        limit = f"{least:g} points, where the whole {'loses' if mean > 0 else 'gains'} {abs(mean):.1f}"
    sentence = (
        f"{len(unfair)} of {len(own)} classes lost more with the best trial than {limit}, up to "
        f"{rows['lost'][0]:.1f} points."
    )
    yield Risk("medium", "uneven classes", sentence, shorten_list(lines), is_about_best=True)


def _seed_flips(study: StudyFrames) -> Iterator[Risk]:
    best, count = study.best, pl.n_unique("seed").over(_CELL)
    trials = study.ok.filter(count > 1)
    if best is None or trials.is_empty():
        return
    of_cell = pl.all_horizontal(pl.col(name).eq_missing(pl.lit(best[name])) for name in _CELL)
    own = trials.filter(of_cell & (pl.col("label") == best["label"])).sort("seed")
    if len(own) > 1:
        values = own["accuracy"].to_list()
        spread = 100 * (max(values) - min(values))
        if spread > LARGE_LOSS:
            lines = [f"seed {seed}: {percent(value, 2)}" for seed, value in own.select("seed", "accuracy").rows()]
            sentence = (
                f"The best trial owes up to {spread:.1f} points to its seed: its method ranges from "
                f"{percent(min(values))} to {percent(max(values))} over {len(own)} seeds."
            )
            yield Risk("medium", "luck of a seed", sentence, shorten_list(lines), is_about_best=True)
    winners = trials.sort(["accuracy", "label"], descending=[True, False]).group_by([*_CELL, "seed"]).first()
    counted = winners.group_by(_CELL).agg(pl.n_unique("label").alias("winners"), pl.col("label"))
    flipped = counted.filter(pl.col("winners") > 1)
    if len(flipped):
        lines = sorted(
            f"{amount}, {mode}: {', '.join(sorted(set(labels)))}"
            for amount, mode, labels in flipped.select("amount", "mode", "label").rows()
        )
        sentence = (
            f"In {len(flipped)} of {plural(len(counted), 'cell')} with several seeds another method wins with another "
            "seed."
        )
        yield Risk("info", "luck of a seed", sentence, shorten_list(lines))


def _few_samples(study: StudyFrames) -> Iterator[Risk]:
    samples = study.results["calibration_samples"].min()
    if samples is None:
        samples = as_mapping(study.environment.get("samples")).get("calibration")
    if samples is None:
        samples = as_mapping(as_mapping(study.study.get("data")).get("calibration")).get("samples")
    if not isinstance(samples, int):
        return
    if samples < FEW_CALIBRATION_SAMPLES:
        where = " in some trials" if study.results["calibration_samples"].n_unique() > 1 else ""
        sentence = (
            f"Only {plural(samples, 'calibration image')}{where}: activation statistics, and repair, rest on very "
            f"little; from {FEW_CALIBRATION_SAMPLES} on this check is silent."
        )
        yield Risk("medium", "few calibration samples", sentence)
    elif study.chance is not None and samples * study.chance < FEW_A_CLASS:
        sentence = (
            f"{samples} calibration images are fewer than {FEW_A_CLASS} a class ({round(1 / study.chance)} classes): "
            "rare activations may be missed."
        )
        yield Risk("info", "few calibration samples", sentence)


CHECKS = (_unreadable, _classes, _seed_flips, _few_samples)
"""Every check of this file."""
