"""Risks of accuracy and speed: what single trials, above all the best one, measured."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.intervals import chance_limit
from cleanai_ray.analysis.numbers import percent, plural, times
from cleanai_ray.analysis.risks.base import BLOCKING_LOSS, LARGE_LOSS, Risk, Severity, shorten_list


def _failures(study: StudyFrames) -> Iterator[Risk]:
    count, total = len(study.failed), len(study.results)
    if not count:
        return
    details = _errors(study)
    if count == total:
        sentence = "The only trial failed." if total == 1 else f"All {total} trials failed; there is no result to use."
        yield Risk("high", "failed trials", sentence, details, is_blocking=True)
    else:
        sentence = f"{count} of {plural(total, 'trial')} failed; comparisons lack them."
        yield Risk("medium", "failed trials", sentence, details)


def _errors(study: StudyFrames) -> tuple[str, ...]:
    trials: dict[str, list[str]] = {}
    for trial_id, error in study.failed.select("trial_id", "error").rows():
        trials.setdefault(error or "no error was recorded", []).append(trial_id)
    return tuple(f"{error} ({', '.join(names)})" for error, names in trials.items())


def _dense_near_chance(study: StudyFrames) -> Iterator[Risk]:
    dense = study.dense.get("accuracy")
    if dense is None or study.chance is None:
        return
    limit = chance_limit(round(1 / study.chance), _num_evaluated(study))
    if dense <= limit:
        sentence = (
            f"The dense model itself reaches only {percent(dense)} top-1, where guessing gives "
            f"{percent(study.chance)}: it is not trained for this data, and comparing pruned models means nothing."
        )
        yield Risk("high", "dense near chance", sentence, is_blocking=True)


def _num_evaluated(study: StudyFrames) -> int | None:
    counts = study.results["num_evaluated"].drop_nulls()
    return int(counts[0]) if len(counts) else None


def _near_chance(study: StudyFrames) -> Iterator[Risk]:
    if study.chance is None:
        return
    limit = chance_limit(round(1 / study.chance), _num_evaluated(study))
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


def _losses(study: StudyFrames) -> Iterator[Risk]:
    best = study.best
    if best is None or best["loss_points"] is None:
        return
    lost = best["loss_points"]
    if lost > LARGE_LOSS:
        blocking = lost > BLOCKING_LOSS
        sentence = (
            f"The best trial loses {lost:.1f} points against the dense model "
            f"({percent(best['accuracy'])} against {percent(best['accuracy_dense'])})."
        )
        severity: Severity = "high" if blocking else "medium"
        yield Risk(severity, "accuracy loss", sentence, is_about_best=True, is_blocking=blocking)
    worse = study.ok.filter(pl.col("loss_points") > LARGE_LOSS)
    if lost <= LARGE_LOSS and len(worse):
        largest = max(worse["loss_points"])
        sentence = (
            f"{len(worse)} of {plural(len(study.ok), 'trial')} lose more than {LARGE_LOSS:g} point against the dense "
            f"model, up to {largest:.1f} points."
        )
        yield Risk("info", "accuracy loss", sentence)


def _no_saving(study: StudyFrames) -> Iterator[Risk]:
    best = study.best
    if best is None or best["macs_share"] is None or best["params_share"] is None:
        return
    if best["macs_share"] > 0.99 and best["params_share"] > 0.99:
        sentence = (
            f"The best trial keeps {percent(best['macs_share'])} of the MACs and {percent(best['params_share'])} of "
            "the parameters: pruning saved nothing."
        )
        yield Risk("high", "no saving", sentence, is_about_best=True, is_blocking=True)


def _speed(study: StudyFrames) -> Iterator[Risk]:
    timed = study.ok.drop_nulls("speedup")
    slower = timed.filter(pl.col("speedup") < 1)
    best = study.best
    if best is not None and best["speedup"] is not None and best["speedup"] < 1:
        sentence = (
            f"The best trial is slower than the dense model at batch 1: speed-up {times(best['speedup'])} "
            f"({best['latency_ms_b1_p50']:.3g} ms against {best['latency_ms_b1_p50_dense']:.3g} ms)."
        )
        yield Risk("high", "slower than dense", sentence, is_about_best=True)
    elif len(slower):
        lines = [f"{trial_id}: {times(value)}" for trial_id, value in slower.select("trial_id", "speedup").rows()]
        sentence = f"{len(slower)} of {plural(len(timed), 'timed trial')} are slower than the dense model at batch 1."
        yield Risk("medium", "slower than dense", sentence, shorten_list(lines))
    if best is not None and best["speedup"] is not None and best["macs_share"]:
        saving = 1 / best["macs_share"]
        if saving > 1.1 and 1 <= best["speedup"] < 1 + 0.5 * (saving - 1):
            sentence = (
                f"The speed-up of the best trial at batch 1, {times(best['speedup'])}, is far below what its MACs "
                f"promise ({times(saving)} fewer)."
            )
            yield Risk("medium", "speed-up below MACs", sentence, is_about_best=True)


CHECKS = (_failures, _dense_near_chance, _near_chance, _losses, _no_saving, _speed)
"""Every check of this file."""
