"""Risks of the study itself: what its design and its records can and cannot show."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames, as_mapping
from cleanai_ray.analysis.intervals import CONTROL, interval_of, rank_methods
from cleanai_ray.analysis.numbers import percent, plural, points
from cleanai_ray.analysis.risks.base import WIDE_INTERVAL, Risk, shorten_list


def _against_random(study: StudyFrames) -> Iterator[Risk]:
    if study.ok.is_empty():
        return
    if CONTROL not in study.methods:
        sentence = (
            "The study has no random pruning as a control: whether its methods are better than chance is not known."
        )
        yield Risk("info", "no control", sentence)
        return
    own = study.best["label"] if study.best else None
    gains = {rank.label: rank.gain_over_random for rank in rank_methods(study) if rank.gain_over_random is not None}
    losers = {label: points(gain, 2) for label, gain in gains.items() if gain <= 0}
    if own in losers:
        sentence = (
            f"{own}, the method of the best trial, is not better than random pruning: {losers.pop(own)} on average "
            "over the cells that both have."
        )
        yield Risk("medium", "not better than random", sentence, is_about_best=True)
    if losers:
        sentence = (
            f"{plural(len(losers), 'method')} did not beat random pruning on average over the cells that both have."
        )
        lines = [f"{label}: {difference}" for label, difference in losers.items()]
        yield Risk("medium", "not better than random", sentence, shorten_list(lines))
    if own == CONTROL and len(study.methods) > 1:
        sentence = "The most accurate trial is a random one: no method of the study earned its cost."
        yield Risk("medium", "not better than random", sentence, is_about_best=True)


def _uncertainty(study: StudyFrames) -> Iterator[Risk]:
    best = study.best
    if best is None:
        return
    interval = interval_of(best)
    if interval is None:
        yield Risk("info", "uncertainty", "How many images were evaluated is not recorded: no interval can be given.")
        return
    if (interval.high - interval.low) / 2 > WIDE_INTERVAL:
        sentence = (
            f"Only {best['num_evaluated']} images were evaluated: the accuracy of the best trial lies between "
            f"{interval} (95 % interval)."
        ).replace(" to ", " and ")
        yield Risk("medium", "few images", sentence, is_about_best=True)
    rivals = [
        row
        for row in study.ranked.iter_rows(named=True)
        if row["method"] != best["method"] and (other := interval_of(row)) is not None and other.overlaps(interval)
    ]
    if rivals:
        methods = sorted({row["method"] for row in rivals})
        sentence = (
            f"{plural(len(rivals), 'trial')} of other methods ({', '.join(methods)}) cannot be told apart from the "
            "best: their 95 % intervals overlap."
        )
        yield Risk("info", "uncertainty", sentence)


def _selection(study: StudyFrames) -> Iterator[Risk]:
    if len(study.ok) > 1:
        sentence = (
            f"The best of {len(study.ok)} trials was chosen by its accuracy on the images that it is reported on; on "
            "new images expect a little less."
        )
        yield Risk("info", "choice of the winner", sentence)


def _samples(study: StudyFrames) -> Iterator[Risk]:
    samples = as_mapping(study.environment.get("samples"))
    if samples.get("calibration_withheld_from_training") is False:
        sentence = (
            "Calibration images were also used for training; activations on them may look better than on new ones."
        )
        yield Risk("info", "calibration shared with training", sentence)
    calibration = as_mapping(as_mapping(study.study.get("data")).get("calibration")).get("split")
    evaluation = as_mapping(study.study.get("evaluation")).get("split")
    if calibration is not None and calibration == evaluation:
        sentence = f"Calibration and evaluation both use the split '{evaluation}': accuracies are not on unseen images."
        yield Risk("high", "calibration on the evaluated split", sentence, is_about_best=True)


def _records(study: StudyFrames) -> Iterator[Risk]:
    if study.ok.height and not study.ok["latency_ms_b1_p50"].count():
        yield Risk(
            "info", "not measured", "Latency was not measured: nothing is known of the speed of the pruned models."
        )
    if study.missing:
        names = ", ".join(study.missing)
        yield Risk("info", "missing files", f"The run directory lacks {names}; what they would show is left out.")
    warnings = [str(text) for text in study.environment.get("warnings") or []]
    if warnings:
        sentence = f"The run gave {plural(len(warnings), 'warning')}."
        yield Risk("medium", "warnings of the run", sentence, shorten_list(warnings))


def _dead_channels(study: StudyFrames) -> Iterator[Risk]:
    frame = study.coverage.unique(["layer", "side", "channel"]) if study.coverage.height else study.coverage
    dead = frame.filter(pl.col("maximum") == pl.col("minimum"))
    if len(dead):
        share = len(dead) / len(frame)
        sentence = (
            f"{plural(len(dead), 'observed channel')} of the dense model ({percent(share)}) never change on the "
            "calibration samples: either they are superfluous or the samples do not exercise them."
        )
        yield Risk("info", "dead channels", sentence)


CHECKS = (_against_random, _uncertainty, _selection, _samples, _records, _dead_channels)
"""Every check of this file."""
