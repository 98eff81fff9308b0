"""The tables of a report."""

from __future__ import annotations

from typing import Any

import polars as pl

from cleanai_ray.analysis.findings import CellBest, Findings
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.intervals import interval_of, speedup_of
from cleanai_ray.analysis.numbers import (
    NONE,
    change,
    milliseconds,
    p_text,
    percent,
    points,
    quantity,
    significant,
    size,
    times_between,
)
from cleanai_ray.analysis.score_words import dense_score, is_counted, score_number, words_of
from cleanai_ray.analysis.speed import where_timed
from cleanai_ray.report.blocks import Column, Table


def dense_against_best(study: StudyFrames) -> Table:
    """Return the best trial beside the dense model, one row per quantity that was measured."""
    best = study.best
    assert best is not None
    interval, dense = interval_of(best), interval_of(best, "accuracy_dense")
    lost = None if best["loss_points"] is None else -best["loss_points"] / 100
    where = ", all images" if study.choice.has_test_images else ""  # what else is told is of the test images
    rows = [
        *_in_own_units(best),
        ("top-1 accuracy", percent(best["accuracy_dense"], 2), percent(best["accuracy"], 2), points(lost, 2)),
        ("95 % interval (Wilson)", str(dense or NONE), str(interval or NONE), ""),
        (
            f"top-5 accuracy{where}",
            percent(best["top5_dense"], 2),
            percent(best["top5"], 2),
            points(_minus(best, "top5"), 2),
        ),
        (
            f"cross-entropy (nats){where}",
            _real(best["loss_dense"]),
            _real(best["loss"]),
            change(best["loss"], best["loss_dense"]),
        ),
    ]
    writers = (
        ("MACs", "macs", quantity),
        (
            "FLOPs (2 \N{MULTIPLICATION SIGN} MACs)",
            "macs",
            lambda value: NONE if value is None else quantity(2 * value),
        ),
        ("parameters", "params", quantity),
        ("size of the weights file", "size_bytes", size),
        (f"latency {where_timed(study.target)}, median", "latency_ms", milliseconds),
        ("throughput (images/s)", "throughput", quantity),
    )
    # Throughput is torch's, at another batch size than a target's.
    for name, column, write in writers if study.target is None else writers[:-1]:
        value, reference = best[column], best[f"{column}_dense"]
        rows.append((name, write(reference), write(value), change(value, reference)))
    rows += _against_dense(best, where_timed(study.target))
    kept = tuple(row for row in rows if row[2] != NONE)
    columns = (Column("", 0.34), Column("dense", 0.22, True), Column("best", 0.22, True), Column("change", 0.22, True))
    return Table(columns, kept)


def _in_own_units(best: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return the row of a score of which a low value is good."""
    words, dense, score = words_of(best.get("metric")), dense_score(best), best.get("score")
    if not words.is_inverted or score is None:
        return []
    return [(words.name, score_number(dense), score_number(score), change(score, dense))]


def _against_dense(best: dict[str, Any], where: str) -> list[tuple[str, str, str, str]]:
    """Return the rows on both models together: speed round by round, answers image by image."""
    rows = []
    if best["speedup"] is not None:
        rows.append((f"speed-up {where} (95 % interval)", "", speedup_of(best), ""))
    if best["mcnemar_p"] is not None and best["lost"] is not None and best["gained"] is not None:
        counts = f"{best['lost']}, {best['gained']}"
        rows.append(("images lost, images gained (McNemar)", "", counts, p_text(best["mcnemar_p"])))
    return rows


def cells(findings: Findings) -> Table:
    """Return the best trial of every ratio and budget; intervals and tests where answers were counted."""
    counted = is_counted(findings.cells[0].trial)
    columns = (
        Column("asked for", 0.13),
        Column("best", 0.2),
        Column("mode", 0.09),
        Column("top-1 (95 % interval)" if counted else "top-1", 0.24, True),
        Column("MACs", 0.08, True),
        Column("next method", 0.22),
        *((Column("apart", 0.14),) if counted else ()),
    )
    rows = []
    for cell in findings.cells:
        interval = f" ({100 * cell.interval.low:.1f}\N{EN DASH}{100 * cell.interval.high:.1f})" if cell.interval else ""
        other = cell.runner_up
        second = f"{other['label']} {percent(other['accuracy'])}" if other else NONE
        accuracy = f"{percent(cell.trial['accuracy'])}{interval}"
        best = cell.trial
        rows.append(
            (
                cell.amount,
                best["label"],
                best["mode"],
                accuracy,
                percent(best["macs_share"], 0),
                second,
                *((_apart(cell),) if counted else ()),
            )
        )
    return Table(columns, tuple(rows))


def _apart(cell: CellBest) -> str:
    """Say if two methods can be told apart and, where they cannot, what difference could be."""
    if cell.is_separable is None:
        return NONE
    return "yes" if cell.is_separable else f"cannot tell (could from {cell.detectable:.1f} on)"


def ranking(findings: Findings) -> Table:
    """Return the methods, the best mean first."""
    columns = (
        Column("", 0.06, True),
        Column("method", 0.34),
        Column("mean top-1", 0.16, True),
        Column("against random", 0.2, True),
        Column("wins", 0.1, True),
        Column("trials", 0.14, True),
    )
    rows = [
        (
            str(place),
            rank.label,
            percent(rank.mean_accuracy, 2),
            points(rank.gain_over_random, 2),
            str(rank.wins),
            str(rank.num_trials),
        )
        for place, rank in enumerate(findings.ranking, start=1)
    ]
    return Table(columns, tuple(rows))


def stages(best: dict[str, Any]) -> Table:
    """Return the accuracy of a trial after each of its stages, on all images that were scored.

    Args:
        best: The trial's row as `StudyFrames.ok` has it.
    """
    steps = (
        ("dense", "accuracy_dense", None),
        ("after pruning", "accuracy_pruned", "seconds_prune"),
        ("after repair", "accuracy_repaired", "seconds_repair"),
        ("after fine-tuning", "accuracy_finetuned", "seconds_finetune"),
        ("after quantisation", "accuracy_quantized", "seconds_quantize"),
    )
    counted, rows = is_counted(best), []
    for name, column, seconds in steps:
        if best[column] is not None:
            spent = best[seconds] if seconds else None
            epochs = (
                f"{best['best_epoch'] or 'none'} of {best['epochs_run']}"
                if column == "accuracy_finetuned" and best["best_epoch"] is not None
                else ""
            )
            rows.append(
                (
                    name,
                    percent(best[column], 2),
                    *((str(interval_of(best, column) or NONE),) if counted else ()),
                    f"{spent:.1f}" if spent else "",
                    epochs,
                )
            )
    columns = (
        Column("stage", 0.26),
        Column("top-1", 0.16, True),
        *((Column("95 % interval", 0.24, True),) if counted else ()),
        Column("seconds", 0.14, True),
        Column("epoch kept", 0.2, True),
    )
    trained = any(row[-1] for row in rows)
    return Table(columns if trained else columns[:-1], tuple(row if trained else row[:-1] for row in rows))


def latency(study: StudyFrames, trial_id: str) -> Table | None:
    """Return the timings of a trial, dense and pruned; None where nothing was timed."""
    frame = study.latency.filter(pl.col("trial_id") == trial_id).sort("backend", "batch_size", "variant")
    if frame.is_empty():
        return None
    several = frame["backend"].n_unique() > 1
    rows = [
        (
            (row["variant"] or NONE) + (f", {row['backend']}" if several else ""),
            str(row["batch_size"]),
            milliseconds(row["latency_ms_p50"]),
            milliseconds(row["latency_ms_p90"]),
            times_between(row["speedup"], row["speedup_low"], row["speedup_high"]),
            quantity(row["throughput"] and float(significant(row["throughput"]))),
            f"{row['num_runs']} after {row['num_warmup']}",
            f"{row['device'] or NONE}, {row['num_threads']} thread{'' if row['num_threads'] == 1 else 's'}",
        )
        for row in frame.iter_rows(named=True)
    ]
    columns = (
        Column("model", 0.2 if several else 0.1),
        Column("batch", 0.08, True),
        Column("p50", 0.12, True),
        Column("p90", 0.12, True),
        Column("speed-up", 0.22, True),
        Column("images/s", 0.12, True),
        Column("runs", 0.17, True),
        Column("device", 0.19),
    )
    return Table(columns, tuple(rows))


def layers(study: StudyFrames, trial_id: str) -> Table | None:
    """Return the layers of a trial; None where they are not recorded."""
    frame = study.layers_of(trial_id)
    if frame.is_empty():
        return None
    rows = []
    for position, row in enumerate(frame.iter_rows(named=True)):
        kept, dense = row["out_channels"], row["out_channels_dense"]
        share = percent(kept / dense, 0) if kept is not None and dense else NONE
        parts = (f"{_of(row, 'in_channels')}", f"{_of(row, 'out_channels')}", share)
        costs = (change(row["params"], row["params_dense"]), change(row["macs"], row["macs_dense"]))
        rows.append((str(position), row["layer"] or NONE, row["kind"] or NONE, *parts, *costs))
    columns = (
        Column("", 0.05, True),
        Column("layer", 0.33),
        Column("kind", 0.11),
        Column("inputs", 0.13, True),
        Column("outputs", 0.13, True),
        Column("kept", 0.08, True),
        Column("params", 0.09, True),
        Column("MACs", 0.09, True),
    )
    return Table(columns, tuple(rows))


def _of(row: dict[str, Any], column: str) -> str:
    kept, dense = row[column], row[f"{column}_dense"]
    return NONE if kept is None else f"{kept} / {NONE if dense is None else dense}"


def _real(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def _minus(best: dict[str, Any], column: str) -> float | None:
    value, dense = best[column], best[f"{column}_dense"]
    return None if value is None or dense is None else value - dense
