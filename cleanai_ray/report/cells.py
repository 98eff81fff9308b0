"""The trials of one or several studies as comparisons read them: accuracies in percentage points, cell by cell."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from cleanai_ray.charts.frames import StudyFrames
from cleanai_ray.results import OK

CELL = ("study", "amount", "mode", "steps")
"""What makes a cell; seeds are replicates within it."""

STAGES = {"final": "accuracy", "pruned": "accuracy_pruned", "repaired": "accuracy_repaired"}
"""Accuracies after the last stage, before repair, and after it."""


def gather(studies: Mapping[str, StudyFrames]) -> pl.DataFrame:
    """Return every trial, the failed ones included, with its cell and its accuracies in percentage points.

    Columns: `CELL`, seed, label, method, coverage_metric, trial_id, a column per name of `STAGES` (null where the trial
    failed or had no such stage), `dense` (100 where it is not known) and `grain`, the points that one image is worth.
    """
    return pl.concat([_trials(name, study) for name, study in studies.items()])


def _trials(name: str, study: StudyFrames) -> pl.DataFrame:
    is_ok = (pl.col("status") == OK) & pl.col("accuracy").is_not_null()
    points = [pl.when(is_ok).then(100 * pl.col(column)).alias(stage) for stage, column in STAGES.items()]
    return study.trials.select(
        pl.lit(name).alias("study"),
        "amount",
        "mode",
        pl.col("steps").fill_null(1),
        pl.col("seed").fill_null(0),
        "label",
        "method",
        "coverage_metric",
        "trial_id",
        *points,
        (100 * pl.col("accuracy_dense")).fill_null(100.0).alias("dense"),
        pl.when(pl.col("num_evaluated") > 0).then(100 / pl.col("num_evaluated")).alias("grain"),
    )


def grain_of(trials: pl.DataFrame) -> float:
    """Return the largest step of an accuracy, in points; 0 where it is not known."""
    largest = trials["grain"].max()
    return float(largest) if isinstance(largest, float) else 0.0
