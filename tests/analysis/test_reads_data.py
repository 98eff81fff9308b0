"""A method says whether its plan depends on calibration data, and the report believes it, not a list of names."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest
from report import synthetic
from report.tables import empty_tables, frame, study_of

from cleanai_ray.analysis.cells import gather
from cleanai_ray.analysis.frames import WITHOUT_DATA, StudyFrames
from cleanai_ray.analysis.questions import answer_questions
from cleanai_ray.config.study import parse_study
from cleanai_ray.importance.base import ImportanceMethod, create_method
from cleanai_ray.registry import METHODS
from cleanai_ray.stages.columns import describe_trial
from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory


def test_what_methods_say_agrees_with_the_names_that_older_tables_are_read_by() -> None:
    methods = {name: create_method(name) for name in METHODS.names()}
    # Plug-ins that other tests load stay registered in their process.
    own = {name: method for name, method in methods.items() if type(method).__module__.startswith("cleanai_ray.")}
    assert {name for name, method in own.items() if not method.reads_data} == set(WITHOUT_DATA)


def test_a_hybrid_reads_data_if_one_of_its_parts_does() -> None:
    assert not create_method("hybrid", {"first": "magnitude", "second": "lamp"}).reads_data
    assert create_method("hybrid", {"first": "magnitude", "second": "wanda"}).reads_data


@pytest.mark.parametrize(
    "need", ["needs_activations", "needs_gradients", "needs_squared_gradients", "needs_curves", "remeasures"]
)
def test_every_kind_of_data_counts(need: str) -> None:
    own = type("Own", (ImportanceMethod,), {need: True, "score": lambda self, group, context: None})
    assert own().reads_data
    assert not type("Own", (own,), {need: False})().reads_data


def test_a_trial_carries_what_its_method_says() -> None:
    study = parse_study(
        {
            "model": {"name": "resnet20", "input_shape": [1, 8, 8], "train": {"epochs": 1}},
            "data": {"name": "digits"},
            "sweep": {"methods": ["wanda", "magnitude"], "ratios": [0.3]},
        }
    )
    found = {trial.method: describe_trial(study, trial)["reads_data"] for trial in study.trials()}
    assert found == {"wanda": True, "magnitude": False}


def swept(reads_data: bool | None) -> StudyFrames:
    """A study of a plug-in method that gains a point by eight times the samples, and of wanda, which gains two."""
    rows = []
    for samples in (128, 1024):
        gains = {"wanda": 2.0, "of_somebody_else": 1.0}
        one = study_of(
            lambda label, ratio, *_, samples=samples, gains=gains: 80 - 10 * ratio + gains[label] * (samples == 1024),
            labels=tuple(gains),
            seeds=(0,),
        )
        for row in one.results.to_dicts():
            row |= {"calibration_samples": samples, "calibration_seed": 0}
            row |= {"trial_id": f"{row['trial_id']}-{samples}"}
            row |= {"reads_data": True if row["method"] == "wanda" else reads_data}
            rows.append(row)
    return StudyFrames(results=frame(rows, schemas.RESULTS), **empty_tables(), study={"data": {"name": "d"}})


@pytest.mark.parametrize(("reads_data", "gain"), [(False, 2.0), (True, 1.5), (None, 1.5)])
def test_a_plugin_is_counted_among_those_that_read_the_samples_if_it_says_so(
    reads_data: bool | None, gain: float
) -> None:
    (answer,) = (found for found in answer_questions({"s": swept(reads_data)}) if found.key == "h1")
    assert answer.effect == pytest.approx(gain)


def test_tables_without_the_column_are_read_by_the_methods_names(tmp_path: Path) -> None:
    run = synthetic.make(methods=("wanda", "magnitude", "random")).write(tmp_path)
    table = pq.read_table(tmp_path / schemas.RESULTS_FILE)
    pq.write_table(table.drop_columns(["reads_data"]), tmp_path / schemas.RESULTS_FILE)
    study = StudyFrames.load(RunDirectory(run.location))
    assert study.results["reads_data"].is_null().all()
    found = gather({"s": study}).group_by("method").agg(pl.col("reads_data").unique()).rows()
    assert dict(found) == {"wanda": [True], "magnitude": [False], "random": [False]}
