"""The table of trials, for print and for a page that sorts and filters it."""

from __future__ import annotations

from typing import Any

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.intervals import interval_of, speedup_of
from cleanai_ray.analysis.numbers import NONE, percent, points
from cleanai_ray.analysis.score_words import words_of_study
from cleanai_ray.report.blocks import Column, DataColumn, Table, TrialTable

SIGNIFICANT = 0.05
"""The p-value of McNemar's test below which the table of trials marks a difference from the dense model."""

MAX_TRIALS = 300
"""The most trials with a result, and the most failed ones, that a page lists for readers without scripts."""

_COLUMNS: tuple[tuple[str, float, DataColumn], ...] = (
    ("label", 1, DataColumn("method", filter="choice", hint="Importance method, with its coverage metric.")),
    ("amount", 1, DataColumn("asked for", filter="choice", hint="Ratio of channels to remove, or budget to keep.")),
    (
        "mode",
        1,
        DataColumn("mode", filter="choice", hint="Scope in which scores are compared: local, global or isomorphic."),
    ),
    ("steps", 1, DataColumn("steps", "number", filter="choice", hint="Iterative pruning steps.")),
    ("seed", 1, DataColumn("seed", "number", filter="choice", hint="Seed of the trial.")),
    ("calibration_samples", 1, DataColumn("n", "number", filter="choice", hint="Calibration images of the trial.")),
    ("calibration_seed", 1, DataColumn("draw", "number", filter="choice", hint="Seed of the draw of these images.")),
    (
        "score",
        1,
        DataColumn("score", "number", 4, "Score in its own units after the last stage that ran; a low one is good."),
    ),
    ("accuracy", 100, DataColumn("top-1, %", "number", 2, "Accuracy after the last stage that ran.", "least")),
    (
        "accuracy_validation",
        100,
        DataColumn("deciding, %", "number", 2, "Accuracy on the images that decide which trial is chosen.", "least"),
    ),
    ("accuracy_test", 100, DataColumn("test, %", "number", 2, "Accuracy on the images that decide nothing.")),
    ("interval", 100, DataColumn("95 % interval", "range", 1, "Interval of that accuracy, by Wilson.")),
    ("loss_points", -1, DataColumn("vs dense", "number", 2, "Difference from the dense model, in points.")),
    ("mcnemar_p", 1, DataColumn("p", "number", 3, "McNemar's exact test of equal accuracy with the dense model.")),
    ("accuracy_pruned", 100, DataColumn("pruned, %", "number", 2, "Accuracy after pruning, before repair.")),
    ("accuracy_repaired", 100, DataColumn("repaired, %", "number", 2, "Accuracy after repair.")),
    ("accuracy_finetuned", 100, DataColumn("fine-tuned, %", "number", 2, "Accuracy after fine-tuning.")),
    ("macs_share", 100, DataColumn("MACs, %", "number", 1, "Share of the dense model's multiply-accumulates.", "most")),
    ("params_share", 100, DataColumn("params, %", "number", 1, "Share of the dense model's parameters.", "most")),
    ("speedup_promised", 1, DataColumn("promised", "number", 2, "Speed-up that profile or latency budget promised.")),
    (
        "speedup",
        1,
        DataColumn("speed-up", "number", 2, "Dense over pruned time, in the target or at batch 1.", "least"),
    ),
    ("speedup_interval", 1, DataColumn("speed-up interval", "range", 2, "95 % interval, by the bootstrap.")),
    ("latency_ms", 1, DataColumn("ms", "number", 3, "Median milliseconds of a forward pass, timed likewise.", "most")),
    ("latency_ms_dense", 1, DataColumn("dense ms", "number", 3, "The dense model's, in turns with the pruned one.")),
    ("agreement", 100, DataColumn("agrees, %", "number", 1, "Share of images on which both models agree.")),
    ("kl_to_dense", 1, DataColumn("KL", "number", 4, "Mean KL(dense || pruned) of the outputs, in nats.")),
    ("seconds_total", 1, DataColumn("seconds", "number", 1, "Duration of the trial.")),
    ("trial_id", 1, DataColumn("trial", hint="Name of the trial, for cleanai export --trial.")),
    ("error", 1, DataColumn("error", hint="Why the trial failed.")),
)


def trial_table(study: StudyFrames) -> TrialTable:
    """Return all trials, the most accurate first and failed ones last; columns without a value are left out."""
    trials = pl.concat([study.ranked, study.failed], how="diagonal").to_dicts()
    kept = [entry for entry in _COLUMNS if any(_value(trial, entry[0]) is not None for trial in trials)]
    if not words_of_study(study).is_inverted:  # the score is what is compared
        kept = [entry for entry in kept if entry[0] != "score"]
    rows = tuple(
        tuple(_scaled(_value(trial, name), factor, column) for name, factor, column in kept) for trial in trials
    )
    columns = tuple(column for _, _, column in kept)
    highlighted = next(iter(_chosen_place(study)), None)
    return TrialTable(every_trial(study), columns, tuple(rows), highlighted=highlighted)


def _chosen_place(study: StudyFrames) -> tuple[int, ...]:
    """Return the place of the chosen trial in the order of rank; empty where every trial failed."""
    if study.best is None:
        return ()
    return (study.ranked["trial_id"].to_list().index(study.best["trial_id"]),)


def _value(trial: dict[str, Any], name: str) -> Any:
    if name == "interval":
        interval = interval_of(trial)
        return None if interval is None else (interval.low, interval.high)
    if name == "speedup_interval":
        low, high = trial.get("speedup_low"), trial.get("speedup_high")
        return None if low is None or high is None else (low, high)
    return trial.get(name)


def _scaled(value: Any, factor: float, column: DataColumn) -> Any:
    if column.kind == "text" or value is None:
        return value
    if isinstance(value, tuple):
        return tuple(round(factor * end, column.digits + 1) for end in value)
    return value if isinstance(value, int) else round(factor * value, column.digits + 2) + 0.0


def every_trial(study: StudyFrames) -> Table:
    """Return the trials, the most accurate first and failed ones last; columns without data are left out."""
    frame = pl.concat([study.ranked.head(MAX_TRIALS), study.failed.head(MAX_TRIALS)], how="diagonal")
    optional = ("steps", "seed", "calibration_samples", "calibration_seed")
    varying = {name: frame[name].n_unique() > 1 for name in optional}
    present = {name: bool(frame[name].count()) for name in ("accuracy_repaired", "accuracy_finetuned", "speedup")}
    has_stages = present["accuracy_repaired"] or present["accuracy_finetuned"]
    has_both = present["accuracy_repaired"] and present["accuracy_finetuned"]
    specification: list[tuple[Column, str, bool]] = [
        (Column("", 0.04, True), "place", True),
        (Column("method", 0.225), "label", True),
        (Column("asked for", 0.115), "amount", True),
        (Column("mode", 0.085), "mode", True),
        (Column("steps", 0.06, True), "steps", varying["steps"]),
        (Column("seed", 0.055, True), "seed", varying["seed"]),
        (Column("n", 0.06, True), "samples", varying["calibration_samples"]),
        (Column("draw", 0.055, True), "draw", varying["calibration_seed"]),
        (Column("pruned", 0.078, True), "pruned", has_stages),
        (Column("repaired", 0.09, True), "repaired", has_both),
        (Column("top-1, %", 0.12, True), "accuracy", True),
        (Column("vs dense", 0.095, True), "loss", True),
        (Column("MACs", 0.068, True), "macs", True),
        (Column("params", 0.08, True), "params", not has_both),
        (Column("speed-up", 0.095, True), "speedup", present["speedup"]),
        (Column("id ends in", 0.105), "id", True),
    ]
    chosen = [(column, key) for column, key, is_shown in specification if is_shown]
    rows = []
    for place, trial in enumerate(frame.iter_rows(named=True), start=1):
        written = _write_trial(trial, place)
        rows.append(tuple(written[key] for _, key in chosen))
    highlighted = tuple(place for place in _chosen_place(study) if place < MAX_TRIALS)
    return Table(tuple(column for column, _ in chosen), tuple(rows), highlighted=highlighted, is_dense=True)


def _write_trial(trial: dict[str, Any], place: int) -> dict[str, str]:
    interval = interval_of(trial)
    accuracy = "failed" if trial["accuracy"] is None or trial["status"] != "ok" else f"{100 * trial['accuracy']:.2f}"
    if interval is not None and accuracy != "failed":
        accuracy += f" \N{PLUS-MINUS SIGN} {50 * (interval.high - interval.low):.1f}"
    lost = trial.get("loss_points")
    return {
        "place": str(place) if accuracy != "failed" else "",
        "label": trial["label"],
        "amount": trial["amount"],
        "mode": trial["mode"],
        "steps": str(trial["steps"] or NONE),
        "seed": NONE if trial["seed"] is None else str(trial["seed"]),
        "samples": str(trial["calibration_samples"] or NONE),
        "draw": NONE if trial["calibration_seed"] is None else str(trial["calibration_seed"]),
        "pruned": _bare_percent(trial["accuracy_pruned"]),
        "repaired": _bare_percent(trial["accuracy_repaired"]),
        "accuracy": accuracy,
        "loss": NONE if lost is None else points(-lost / 100, 2).removesuffix(" points") + _star(trial),
        "macs": percent(trial.get("macs_share"), 0),
        "params": percent(trial.get("params_share"), 0),
        "speedup": speedup_of(trial),
        "id": str(trial["trial_id"]).rpartition("-")[2][-8:],
    }


def _star(trial: dict[str, Any]) -> str:
    found = trial["mcnemar_p"]
    return "*" if found is not None and found < SIGNIFICANT else ""


def _bare_percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f}"
