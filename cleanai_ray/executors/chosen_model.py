"""The model of the chosen trial, the one that the report recommends: `output.save_models: best` and `front` keep it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.config.study import Study, Trial
from cleanai_ray.executors.writer import UNBEATEN, RunStore
from cleanai_ray.storage import schemas


def chosen_row(study: Study, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the row of the trial that a study leads to, as its report will say; None where every trial failed.

    Args:
        study: The study.
        rows: The rows of all its trials, of which controls are none to choose.
    """
    return frames_of(study, rows).best


def frames_of(study: Study, rows: Sequence[Mapping[str, Any]]) -> StudyFrames:
    """Return a study as its report sees it, of the rows of its trials alone."""
    pruned = [row for row in rows if row.get("control") is None]
    return StudyFrames(
        results=_frame(schemas.to_table(pruned, schemas.RESULTS)),
        layers=_frame(schemas.LAYERS.empty_table()),
        coverage=_frame(schemas.coverage_schema(()).empty_table()),
        history=_frame(schemas.HISTORY.empty_table()),
        latency=_frame(schemas.LATENCY.empty_table()),
        study=study.model_dump(mode="json"),
    )


def _frame(table: Any) -> pl.DataFrame:
    found = pl.from_arrow(table)
    assert isinstance(found, pl.DataFrame)
    return found.with_columns(pl.col(pl.Float64).fill_nan(None))


def keep_chosen_model(
    study: Study, store: RunStore, records: dict[str, dict[str, Any]], run_again: Callable[[Trial], dict[str, Any]]
) -> None:
    """Keep the model of the chosen trial, and no other if the study asks for the best one alone.

    While trials run, the models are kept that none other beats in accuracy and in MACs. The chosen trial is seldom
    another one, for it may also have been beaten by luck or be the one that a limit allows: then it is run again.

    Args:
        study: The study.
        store: Access to the run directory.
        records: The record of each trial by trial id; that of a trial that is run again is replaced, unless it fails.
        run_again: Runs a trial and returns its record.
    """
    if study.output.save_models not in UNBEATEN:
        return
    chosen = chosen_row(study, [record["row"] for record in records.values()])
    if chosen is None or store.keep_model(chosen["trial_id"]):
        return
    (trial,) = (trial for trial in study.trials() if trial.trial_id == chosen["trial_id"])
    again = run_again(trial)
    if again["row"]["status"] != schemas.OK:
        row, error = records[trial.trial_id]["row"], again["row"]["error"]
        row["warnings"] = [*row["warnings"], f"its model was not kept, and it failed when it was run again: {error}"]
        return
    records[trial.trial_id] = again
    store.keep_model(trial.trial_id)
