"""A whole study: its tables and files, how it resumes, and what a failing trial does, in this process and on Ray."""

from __future__ import annotations

import json
import shutil
import sys

import pyarrow.parquet as pq
import pytest
import small_study as small
from pypdf import PdfReader

import cleanai_ray
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.config.study import load_study, parse_study
from cleanai_ray.evaluation.accuracy import evaluate
from cleanai_ray.models import build_model
from cleanai_ray.registry import METHODS, METRICS
from cleanai_ray.stages.planning import check_study, describe_plan
from cleanai_ray.stages.workspace import open_workspace
from cleanai_ray.storage import image_schemas, schemas
from cleanai_ray.storage.ranking import dominates
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.storage.status import read_status

STAGES = ("prune", "repair", "finetune", "evaluate")


def rows(folder, name=schemas.RESULTS_FILE):
    return pq.read_table(folder / name).to_pylist()


def chosen(folder):
    """The row of the trial that the report of a run directory recommends."""
    best = StudyFrames.load(RunDirectory(folder)).best
    return next(row for row in rows(folder) if row["trial_id"] == best["trial_id"])


def test_a_run_directory_holds_what_the_contract_lists(small_run):
    study, folder, _ = small_run
    expected = {
        schemas.RESULTS_FILE: schemas.RESULTS,
        schemas.LAYERS_FILE: schemas.LAYERS,
        schemas.HISTORY_FILE: schemas.HISTORY,
        schemas.LATENCY_FILE: schemas.LATENCY,
        schemas.CLASSES_FILE: schemas.CLASSES,
        schemas.COVERAGE_FILE: schemas.coverage_schema(METRICS.names()),
        image_schemas.IMAGES_FILE: image_schemas.IMAGES,
        image_schemas.CORRECT_FILE: image_schemas.CORRECT,
    }
    for name, schema in expected.items():
        assert pq.read_table(folder / name).schema.equals(schema), name
    table = rows(folder)
    assert [row["trial_id"] for row in table] == [trial.trial_id for trial in study.trials()]
    assert {row["status"] for row in table} == {"ok"}
    assert load_study(folder / "study.yaml") == study
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["samples"]["calibration"] == 200
    charts = {"accuracy_by_method", "accuracy_macs", "coverage_heatmap", "dense_vs_best"}
    charts |= {"layer_channels", "channel_overlap", "time_by_stage", "accuracy_latency", "class_change"}
    charts |= {"differences", "selection_test"}  # not `recovery`: all trials are at chance after pruning
    assert {file.stem for file in (folder / "charts").glob("*.svg")} == charts
    assert len(PdfReader(folder / "report.pdf").pages) >= 5
    assert "small" in (folder / "report.html").read_text()


def test_the_rows_of_a_trial_agree_with_each_other(small_run):
    _, folder, _ = small_run
    layers, history, latency = (rows(folder, name) for name in ("layers.parquet", "history.parquet", "latency.parquet"))
    for row in rows(folder):
        mine = [layer for layer in layers if layer["trial_id"] == row["trial_id"]]
        # A ResNet-20 has 19 convolutions, 2 of them shortcuts more, and the classifier.
        assert len(mine) == 22
        assert sum(layer["macs"] for layer in mine) == row["macs"] < row["macs_dense"]
        assert all(
            layer["out_channels_dense"] - layer["out_channels"] == len(layer["removed_channels"]) for layer in mine
        )
        assert [epoch["epoch"] for epoch in history if epoch["trial_id"] == row["trial_id"]] == [1]
        timed = [entry for entry in latency if entry["trial_id"] == row["trial_id"]]
        assert sorted((entry["variant"], entry["batch_size"]) for entry in timed) == [
            ("dense", 1),
            ("dense", 4),
            ("pruned", 1),
            ("pruned", 4),
        ]
        assert row["accuracy"] == row["accuracy_finetuned"]
        assert 0 <= row["accuracy_repaired"] <= 1
        assert row["repair"]
        assert row["num_evaluated"] == 100
        assert row["seconds_total"] >= sum(row[f"seconds_{stage}"] for stage in STAGES) - 1e-6
    assert [row["epoch"] for row in history if row["trial_id"] == schemas.DENSE] == [1, 2]


def test_the_best_models_are_kept_and_the_chosen_one_scores_what_the_table_says(small_run):
    study, folder, _ = small_run
    best = chosen(folder)
    names = {path.name for path in (folder / "models").iterdir()}
    every = rows(folder)
    unbeaten = {row["trial_id"] for row in every if not any(dominates(other, row) for other in every)}
    assert names == {best["trial_id"], *unbeaten}
    model = cleanai_ray.load(folder / "models" / best["trial_id"], lambda: build_model(study.model))
    workspace = open_workspace(study.model_dump_json(), "cpu")
    assert evaluate(model, workspace.batches("evaluation")).accuracy == best["accuracy"]
    assert sum(value.numel() for value in model.parameters()) == best["params"]


@pytest.mark.ray
def test_every_trial_on_ray_leaves_tensorboard_files(small_run_on_ray):
    study, folder, _ = small_run_on_ray
    for trial in study.trials():
        assert list((folder / "tune").glob(f"**/{trial.trial_id}*/events.out.tfevents*")), trial.trial_id


def test_the_course_of_the_study_is_told_in_plain_lines(small_run):
    _, folder, said = small_run
    assert "trials: 3 done, 0 running, 0 failed, of 3" in said
    assert f"model: {folder}/models/{chosen(folder)['trial_id']};" in said
    assert "3 of 3 trials succeeded" in said
    assert "\x1b" not in said


def test_a_whole_study_leaves_a_status_that_agrees_with_its_tables(small_run):
    _, folder, _ = small_run
    found = read_status(RunDirectory(folder))
    best = chosen(folder)
    assert best["num_test"] > 0
    assert (found.study, found.state, found.stage) == ("small", "finished", "report")
    assert (found.trials_total, found.trials_done, found.trials_failed, found.trials_running) == (3, 3, 0, 0)
    assert (found.best, found.best_accuracy) == (best["trial_id"], best["accuracy_test"])
    assert (found.accuracy_dense, found.best_samples) == (best["accuracy_test_dense"], best["num_test"])


def test_the_same_study_again_repeats_nothing(small_run):
    study, folder, _ = small_run
    kept = {path: path.stat().st_mtime_ns for path in [*(folder / "trials").iterdir(), *(folder / "cache").iterdir()]}
    before = rows(folder)
    failed, said = small.run(study, folder)
    assert failed == 0
    assert "3 of 3 trials were complete already" in said
    assert "nothing is left to compute" in said
    assert "3 of 3 trials succeeded, in an earlier run" in said
    summary = describe_plan(study, check_study(study), RunDirectory(folder)).summary
    assert "3 trials, 3 of them cached" in summary[0]
    assert "to be computed" not in " ".join(summary)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert rows(folder) == before


def test_a_changed_study_reuses_only_what_it_may(small_run, tmp_path):
    _, finished, _ = small_run
    folder = shutil.copytree(finished, tmp_path / "changed")
    calibration = (folder / "cache" / "calibration.safetensors").stat().st_mtime_ns
    sweep = {**small.SMALL["sweep"], "methods": ["random"]}
    failed, said = small.run(parse_study({**small.SMALL, "sweep": sweep, "finetune": {"epochs": 0}}), folder)
    assert failed == 0
    assert "complete already" not in said
    assert (folder / "cache" / "calibration.safetensors").stat().st_mtime_ns == calibration
    (row,) = rows(folder)
    assert row["epochs_run"] == 0
    assert row["accuracy_finetuned"] is None


@pytest.mark.ray
def test_both_executors_give_the_same_tables(small_run, small_run_on_ray):
    (_, local, _), (_, on_ray, said) = small_run, small_run_on_ray
    for name in small.TABLES:
        assert small.timeless_table(on_ray, name) == small.timeless_table(local, name), name
    assert "trials: 3 done, 0 running, 0 failed, of 3" in said


@pytest.mark.ray
@pytest.mark.slow
def test_a_raylet_killed_in_mid_study_changes_no_table(small_run, tmp_path):
    _, quiet, _ = small_run
    said = small.run_on_two_nodes({**small.SMALL, "resources": {}}, tmp_path, "trials/*.done")
    assert "killed the raylet of the second node" in said
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["trials_complete_before"] == 0
    for name in small.TABLES:
        assert small.timeless_table(tmp_path / "run", name) == small.timeless_table(quiet, name), name
    assert {row["status"] for row in rows(quiet)} == {"ok"}


@pytest.fixture
def plugin(monkeypatch):
    """The name of the plugin module, whose methods are forgotten after the test."""
    monkeypatch.setattr(METHODS, "_values", dict(METHODS._values))
    monkeypatch.setattr(METHODS, "_summaries", dict(METHODS._summaries))
    yield "executors.plugin_methods"
    sys.modules.pop("executors.plugin_methods", None)


@pytest.mark.ray
@pytest.mark.slow
def test_a_failing_and_a_dying_trial_are_rows_and_the_others_go_on(ray_session, plugin, tmp_path):
    study = parse_study(
        {
            **small.SMALL,
            "plugins": [plugin],
            "finetune": {"epochs": 0},
            "sweep": {"methods": ["refusing", "dying", "magnitude"], "ratios": [0.3]},
        }
    )
    failed, said = small.run(study, tmp_path, "ray", report=True)
    assert failed == 2
    found = {row["method"]: row for row in rows(tmp_path)}
    assert found["magnitude"]["status"] == "ok"
    assert found["refusing"]["status"] == "failed"
    assert found["refusing"]["error"].startswith("ValueError: no score for ")
    assert found["dying"]["status"] == "failed"
    assert all(fact in found["dying"]["error"] for fact in ("process died", "memory", "Ray says"))
    assert len(found["dying"]["error"]) < 350, "what Ray lists of possible causes is left out"
    assert "failed: refusing" in said
    text = "".join(page.extract_text() for page in PdfReader(tmp_path / "report.pdf").pages)
    assert "no score for" in text.replace("\n", " ")


def test_models_of_other_inputs_go_and_a_model_that_is_wanted_later_is_made(tmp_path):
    settings = {**small.SMALL, "finetune": {"epochs": 0}, "repair": {"compensation": "none", "batch_norm": "none"}}
    settings["sweep"] = {"methods": ["magnitude", "random"], "ratios": [0.3]}
    study = parse_study({**settings, "output": {"dir": "unused", "save_models": "none"}})
    stale = tmp_path / "models" / study.trials()[0].trial_id
    stale.mkdir(parents=True)
    (stale / "plan.json").write_text("of an earlier study")
    assert small.run(study, tmp_path)[0] == 0
    assert not stale.exists()
    before = rows(tmp_path)
    failed, said = small.run(parse_study({**settings, "output": {"dir": "unused", "save_models": "best"}}), tmp_path)
    assert failed == 0
    best = chosen(tmp_path)
    assert "2 of 2 trials were complete already" in said
    assert f"the model of the chosen trial, {best['trial_id']}, was not kept; the trial is run again" in said
    assert [path.name for path in (tmp_path / "models").iterdir()] == [best["trial_id"]]
    assert small.timeless(rows(tmp_path)) == small.timeless(before)
