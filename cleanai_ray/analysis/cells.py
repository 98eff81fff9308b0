"""The trials of one or several studies, ready to be compared: accuracies in percentage points, cell by cell."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.near_chance import BROKEN_SHARE
from cleanai_ray.storage.schemas import OK

CELL = ("study", "amount", "mode", "steps")
"""The columns that make a cell. Seeds are replicates in it, and so are draws of the calibration samples."""

STAGES = {"final": "accuracy", "pruned": "accuracy_pruned", "repaired": "accuracy_repaired"}
"""Accuracies after the last stage, before repair, and after it."""


def gather(studies: Mapping[str, StudyFrames]) -> pl.DataFrame:
    """Return the trials, the failed ones included, with their cells and their accuracies in percentage points.

    Only trials of one quantisation of each study (`StudyFrames.base_quantization`): the others start from the same
    pruned models, and would count them twice.

    Columns: `CELL`, `seed` (the replicate: trials of one share their seed and the draw of the calibration samples),
    `trial_seed`, `samples` and `draw` (number of calibration samples and seed of their draw; null if unknown), label,
    method, coverage_metric, trial_id, reads_data, a column per name of `STAGES` (null where the trial failed or had no
    such stage), `replicate` (equal for trials of one seed and draw, whatever its size), `chance` (accuracy in points up
    to which a model is near chance) and `grain`, the points that one image is worth.
    """
    return pl.concat([_trials(name, study) for name, study in studies.items()])


def _trials(name: str, study: StudyFrames) -> pl.DataFrame:
    stated = {name: pl.lit(_stated(study, name), dtype=pl.Int64) for name in ("samples", "seed")}
    own = study.trials.with_columns(
        pl.col("seed").fill_null(0).alias("trial_seed"),
        *(pl.col(f"calibration_{name}").fill_null(value) for name, value in stated.items()),
    )
    drawn = own.select("calibration_samples", "calibration_seed").drop_nulls()
    replicate = ["trial_seed", "calibration_samples", "calibration_seed"]
    # Where there is one draw, seeds alone number the replicates, as in tables without these columns.
    seed = pl.struct(replicate).rank("dense").cast(pl.Int64) if drawn.n_unique() > 1 else pl.col("trial_seed")
    is_ok = (pl.col("status") == OK) & pl.col("accuracy").is_not_null()
    points = [pl.when(is_ok).then(100 * pl.col(column)).alias(stage) for stage, column in STAGES.items()]
    return own.filter(pl.col("quantization") == study.base_quantization).select(
        pl.lit(name).alias("study"),
        "amount",
        "mode",
        pl.col("steps").fill_null(1),
        seed.alias("seed"),
        "trial_seed",
        pl.col("calibration_samples").alias("samples"),
        pl.col("calibration_seed").alias("draw"),
        "label",
        "method",
        "coverage_metric",
        "trial_id",
        "reads_data",
        # Fewer images of a draw are part of the more, so that both are one draw.
        pl.struct("trial_seed", "calibration_seed").rank("dense").cast(pl.Int64).alias("replicate"),
        *points,
        near_chance_points().alias("chance"),
        pl.when((pl.col("num_evaluated") > 0) & (pl.col("metric").fill_null("accuracy") == "accuracy"))
        .then(100 / pl.col("num_evaluated"))
        .alias("grain"),
    )


def near_chance_points() -> pl.Expr:
    """Return the accuracy up to which a model is near chance, in points; null where it is not known."""
    chance = 1 / pl.col("num_classes")
    lead = (pl.col("accuracy_dense") - chance).clip(lower_bound=0)
    return 100 * (chance + BROKEN_SHARE * lead)


def _stated(study: StudyFrames, name: str) -> int | None:
    """Return a number from the calibration section of the study file; None where it is a list or absent."""
    data = study.study.get("data")
    calibration = data.get("calibration") if isinstance(data, Mapping) else None
    value = calibration.get(name) if isinstance(calibration, Mapping) else None
    return value if isinstance(value, int) else None


def grain_of(trials: pl.DataFrame) -> float:
    """Return the largest step of an accuracy, in points; 0 where it is not known."""
    largest = trials["grain"].max()
    return float(largest) if isinstance(largest, float) else 0.0
