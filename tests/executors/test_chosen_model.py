"""The model that is kept is that of the trial that the report recommends, and export takes the same one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.config.study import Study, parse_study
from cleanai_ray.errors import ArtifactError
from cleanai_ray.executors.chosen_model import chosen_row, keep_chosen_model
from cleanai_ray.executors.writer import RunWriter, SavedTrialModel
from cleanai_ray.stages.completed import completed_records
from cleanai_ray.stages.export_run import explain_trial
from cleanai_ray.stages.fingerprints import trial_key
from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory

MODEL = SavedTrialModel(plan="{}", weights=b"")


def study_of(save_models: str = "best", **recommend: float) -> Study:
    settings: dict[str, Any] = {
        "model": {"name": "resnet20", "input_shape": [1, 8, 8]},
        "data": {"name": "digits"},
        "sweep": {"methods": ["magnitude", "wanda", "taylor"], "ratios": [0.3]},
        "output": {"save_models": save_models},
    }
    return parse_study({**settings, **({"recommend": recommend} if recommend else {})})


def row(study: Study, place: int, accuracy: float, macs: int, **more: float) -> dict[str, Any]:
    trial = study.trials()[place]
    return {
        "trial_id": trial.trial_id,
        "status": schemas.OK,
        "method": trial.method,
        "label": trial.label,
        "ratio": trial.ratio,
        "mode": trial.mode,
        "steps": trial.steps,
        "seed": trial.seed,
        "accuracy": accuracy,
        "accuracy_dense": 0.93,
        "num_evaluated": 1000,
        "num_classes": 10,
        "macs": macs,
        "macs_dense": 100,
        **more,
    }


def kept(folder: Path, study: Study, rows: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """The models that are there at the end, and the trials that were run again for theirs."""
    writer, again = RunWriter(str(folder), study), []
    for one in rows:
        writer.write_trial({"row": one}, "key", MODEL if writer.wants_model(one) else None)
    records = {one["trial_id"]: {"row": one} for one in rows}

    def run_again(trial: Any) -> dict[str, Any]:
        again.append(trial.trial_id)
        record = records[trial.trial_id]
        assert writer.wants_model(record["row"])
        writer.write_trial(record, "key", MODEL)
        return record

    keep_chosen_model(study, writer, records, run_again)
    RunDirectory(str(folder)).write_table(schemas.RESULTS_FILE, schemas.to_table(rows, schemas.RESULTS))
    RunDirectory(str(folder)).write_text("study.yaml", study.to_yaml())
    return RunDirectory(str(folder)).list("models"), again


def test_the_kept_model_is_the_recommended_one_and_not_the_most_accurate(tmp_path: Path) -> None:
    study = study_of(max_accuracy_loss=2.0)
    rows = [row(study, 0, 0.925, 90), row(study, 1, 0.915, 30), row(study, 2, 0.80, 10)]
    models, again = kept(tmp_path, study, rows)
    assert models == [rows[1]["trial_id"]]
    assert again == []
    best = StudyFrames.load(RunDirectory(str(tmp_path))).best
    assert best is not None
    assert best["trial_id"] == models[0]
    with pytest.raises(ArtifactError, match="plan"):  # it is looked for in the right folder; the plan is empty
        explain_trial(RunDirectory(str(tmp_path)), "best")


def test_the_front_is_the_chosen_trial_and_all_that_none_beats(tmp_path: Path) -> None:
    study = study_of("front", max_accuracy_loss=2.0)
    rows = [row(study, 0, 0.925, 90), row(study, 1, 0.915, 30), row(study, 2, 0.80, 35)]
    models, again = kept(tmp_path, study, rows)
    assert models == sorted(
        one["trial_id"] for one in rows[:2]
    )  # the third is less accurate than the second, and larger
    assert again == []


def test_a_chosen_trial_that_is_beaten_is_kept_beside_the_front(tmp_path: Path) -> None:
    study = study_of("front", min_speedup=2.0)
    rows = [row(study, 0, 0.925, 30, speedup_b1=1.0), row(study, 1, 0.915, 90, speedup_b1=2.5)]
    models, again = kept(tmp_path, study, rows)
    assert models == sorted(one["trial_id"] for one in rows)
    assert again == [rows[1]["trial_id"]]


def written(folder: Path, study: Study, rows: list[dict[str, Any]]) -> RunDirectory:
    """A run directory after a sweep: records, and the models that the study keeps."""
    writer = RunWriter(str(folder), study)
    for one, trial in zip(rows, study.trials(), strict=True):
        key = trial_key(study, trial, "dense")
        writer.write_trial({"row": one}, key, MODEL if writer.wants_model(one) else None)
    return RunDirectory(str(folder))


@pytest.mark.parametrize(("asked", "lacking"), [("none", []), ("best", []), ("front", [0, 1]), ("all", [0, 1, 2])])
def test_a_trial_is_complete_with_the_model_that_is_asked_for(tmp_path: Path, asked: str, lacking: list[int]) -> None:
    study = study_of("none")
    rows = [row(study, 0, 0.92, 50), row(study, 1, 0.80, 30), row(study, 2, 0.85, 60)]  # the first beats the third
    run = written(tmp_path, study, rows)
    assert run.list("models") == []
    left = [one["trial_id"] for place, one in enumerate(rows) if place not in lacking]
    assert list(completed_records(study_of(asked), run, "dense")) == left


@pytest.mark.parametrize("before", ["none", "best", "front"])
def test_a_run_that_kept_fewer_models_is_filled_up_to_the_front(tmp_path: Path, before: str) -> None:
    study = study_of(before)
    rows = [row(study, 0, 0.92, 50), row(study, 1, 0.80, 30), row(study, 2, 0.85, 60)]
    run = written(tmp_path, study, rows)
    if before == "best":  # as at the end of its run
        assert RunWriter(str(tmp_path), study).keep_model(rows[0]["trial_id"])
    study, kept_before = study_of("front"), set(run.list("models"))
    done = completed_records(study, run, "dense")
    front = {one["trial_id"] for one in rows[:2]}
    assert {one["trial_id"] for one in rows} - done.keys() == front - kept_before
    writer = RunWriter(str(tmp_path), study)
    writer.begin_sweep(list(done))
    for one in (one for one in rows if one["trial_id"] not in done):
        assert writer.wants_model(one)
        writer.write_trial({"row": one}, "key", MODEL)
    assert set(run.list("models")) == front


def test_a_control_is_not_of_the_front_and_beats_nothing(tmp_path: Path) -> None:
    study = study_of("none")
    control = {**row(study, 0, 0.99, 10), "control": "scratch"}
    run = written(tmp_path, study, [control, row(study, 1, 0.80, 30), row(study, 2, 0.85, 60)])
    assert list(completed_records(study_of("front"), run, "dense")) == [control["trial_id"]]


def test_by_default_the_front_is_kept() -> None:
    assert parse_study(study_of().model_dump(mode="json", exclude={"output"})).output.save_models == "front"


def test_a_chosen_trial_whose_model_went_is_run_again(tmp_path: Path) -> None:
    study = study_of(min_speedup=2.0)
    # The second is beaten in accuracy and MACs, but alone fast enough.
    rows = [
        row(study, 0, 0.925, 30, speedup_b1=1.0),
        row(study, 1, 0.915, 90, speedup_b1=2.5),
        row(study, 2, 0.80, 20, speedup_b1=1.5),
    ]
    assert kept(tmp_path, study, rows) == ([rows[1]["trial_id"]], [rows[1]["trial_id"]])


def test_a_chosen_trial_that_fails_when_it_is_run_again_costs_neither_models_nor_its_record(tmp_path: Path) -> None:
    study = study_of(min_speedup=2.0)
    speeds = (row(study, 0, 0.925, 30, speedup_b1=1.0), row(study, 1, 0.915, 90, speedup_b1=2.5))
    rows = [{**one, "warnings": []} for one in speeds]
    writer = RunWriter(str(tmp_path), study)
    for one in rows:
        writer.write_trial({"row": one}, "key", MODEL if writer.wants_model(one) else None)
    records = {one["trial_id"]: {"row": one} for one in rows}
    chosen = rows[1]["trial_id"]
    failed = {"row": {**rows[1], "status": schemas.FAILED, "error": "out of memory"}}
    keep_chosen_model(study, writer, records, lambda trial: failed)
    assert RunDirectory(str(tmp_path)).list("models") == [rows[0]["trial_id"]]
    assert records[chosen]["row"]["status"] == schemas.OK
    assert "out of memory" in records[chosen]["row"]["warnings"][-1]


def test_images_that_decide_choose_the_model(tmp_path: Path) -> None:
    study = study_of(max_macs=0.95)
    roles = [(0.92, 0.88), (0.90, 0.94), (0.91, 0.91)]
    rows = [
        row(study, place, 0.9, 50, accuracy_validation=first, accuracy_test=second, num_validation=500, num_test=500)
        for place, (first, second) in enumerate(roles)
    ]
    models, again = kept(tmp_path, study, rows)
    assert (models, again) == ([rows[0]["trial_id"]], [])
    assert chosen_row(study, []) is None
