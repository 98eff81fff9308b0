"""A study that sweeps its calibration samples, in this process: each trial reads its own draw, measured once."""

from __future__ import annotations

import copy

import pyarrow.parquet as pq
import pytest
import small_study as small

from cleanai_ray.config.study import parse_study
from cleanai_ray.stages.dense import prepare_dense
from cleanai_ray.stages.outcome import run_trial
from cleanai_ray.stages.planning import check_study, describe_plan
from cleanai_ray.stages.workspace import open_workspace
from cleanai_ray.storage.run_directory import RunDirectory

DRAWN = copy.deepcopy(small.SMALL) | {
    "name": "drawn",
    "data": {"name": "digits", "calibration": {"samples": [40, 160], "seed": [0, 1], "shard_size": 64}},
    "sweep": {"methods": ["wanda"], "ratios": [0.5]},
    "finetune": {"epochs": 0},
    "repair": {"compensation": "closed_form", "batch_norm": "none"},
    "evaluation": {"samples": 100},
}
DRAWN["model"]["train"] = {"epochs": 1}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    study = parse_study(DRAWN)
    failed, said = small.run(study, folder, report=True)
    assert failed == 0, said
    return study, folder


def test_every_trial_is_what_its_draw_alone_makes_of_it(drawn):
    study, folder = drawn
    rows = {row["trial_id"]: row for row in pq.read_table(folder / "results.parquet").to_pylist()}
    layers = pq.read_table(folder / "layers.parquet").to_pylist()
    dense = prepare_dense(open_workspace(study.model_dump_json(), "cpu"))
    assert set(rows) == {trial.trial_id for trial in study.trials()}
    for draw in study.draws():
        workspace = open_workspace(study.model_dump_json(), "cpu", draw)
        assert len(workspace.roles.calibration) == draw.samples
        measures = small.measure_locally(workspace, dense)
        for trial in (one for one in study.trials() if study.draw_of(one) == draw):
            row = rows[trial.trial_id]
            assert (row["calibration_samples"], row["calibration_seed"]) == (draw.samples, draw.seed)
            expected = run_trial(workspace, trial, dense, workspace.dense_model(dense.weights), measures)
            removed = [layer["removed_channels"] for layer in layers if layer["trial_id"] == trial.trial_id]
            assert removed == [layer["removed_channels"] for layer in expected.layers]
            assert row["accuracy"] == expected.row["accuracy"]


def test_the_draws_are_measured_once_and_kept(drawn):
    study, folder = drawn
    cached = {path.parent.name for path in (folder / "cache").glob("*/calibration.safetensors")}
    assert cached == {"n40-draw0", "n40-draw1", "n160-draw0", "n160-draw1"}
    kept = {path: path.stat().st_mtime_ns for path in (folder / "cache").rglob("*") if path.is_file()}
    failed, said = small.run(study, folder)
    assert failed == 0
    assert "4 of 4 trials were complete already" in said
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_plan_names_the_draws_and_what_is_cached(drawn):
    study, folder = drawn
    plan = describe_plan(study, check_study(study), RunDirectory(folder))
    assert plan.columns[6:8] == ("calibration samples", "draw")
    assert [row[6:8] for row in plan.rows[:4]] == [("40", "0"), ("40", "1"), ("160", "0"), ("160", "1")]
    assert {row[-1] for row in plan.rows} == {"cached"}
    assert "160 samples of draw 1: cached, 3 shards" in plan.summary[1]
    assert plan.summary[2].startswith("samples: 40 or 160 calibration")
    another = parse_study(DRAWN | {"data": {"name": "digits", "calibration": {"samples": 80, "shard_size": 64}}})
    summary = describe_plan(another, check_study(another), RunDirectory(folder)).summary
    assert "calibration: to be computed, 2 shards" in summary[1]
