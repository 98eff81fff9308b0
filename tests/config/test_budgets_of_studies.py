"""Trials of a study with a budget of file size or latency, and their rows in the tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cleanai_ray.config.study import Study, parse_study
from cleanai_ray.errors import PruningError
from cleanai_ray.pruning.saved_model import save_model
from cleanai_ray.stages.dense import prepare_dense
from cleanai_ray.stages.dense_measures import DenseMeasures
from cleanai_ray.stages.outcome import TrialOutcome, run_trial
from cleanai_ray.stages.planning import describe_plan
from cleanai_ray.stages.workspace import open_workspace
from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory

TIMING = {"batch_sizes": [1, 2], "warmup": 1, "runs": 5, "budget_batch_size": 2}


def study_of(budget: dict[str, float]) -> Study:
    document: dict[str, Any] = {
        "model": {"name": "resnet20", "num_classes": 10, "input_shape": [1, 8, 8]},
        "data": {"name": "digits", "calibration": {"samples": 64}},
        "sweep": {"methods": ["magnitude"], "budgets": [budget]},
        "repair": {"compensation": "none", "batch_norm": "none"},
        "evaluation": {"samples": 50, "latency": TIMING},
    }
    return parse_study(document)


def outcome_of(budget: dict[str, float]) -> TrialOutcome:
    study = study_of(budget)
    workspace = open_workspace(study.model_dump_json(), "cpu")
    dense = prepare_dense(workspace)
    (trial,) = study.trials()
    return run_trial(workspace, trial, dense, workspace.dense_model(dense.weights), DenseMeasures())


def test_a_trial_of_a_budget_in_megabytes_leaves_such_a_file(tmp_path: Path) -> None:
    outcome = outcome_of({"size_mb": 0.5})
    assert outcome.model is not None
    assert outcome.plan is not None
    save_model(outcome.model, outcome.plan, RunDirectory(tmp_path))
    size = (tmp_path / "weights.safetensors").stat().st_size
    assert outcome.row["size_bytes"] == size
    assert 0.98 * 500_000 <= size <= 500_000
    assert outcome.row["requested_budget"] == "size_mb=0.5"
    assert outcome.row["trial_id"].startswith("magnitude-local-size_mb0.5-")
    assert schemas.to_table([outcome.row], schemas.RESULTS)["ratio"].to_pylist() == [None]


def test_a_trial_of_a_budget_of_latency_says_what_was_measured_at_which_batch_size() -> None:
    """What the clock says is not looked at; a limit near 1.0 leaves it room."""
    try:
        outcome = outcome_of({"latency": 0.98})
    except PruningError as error:  # A machine so busy that the smallest model seems slower than the dense one.
        assert "budget" in str(error)  # noqa: PT017
        return
    assert outcome.plan is not None
    measured = outcome.plan.achieved["latency"]
    assert (measured["batch_size"], measured["num_threads"]) == (2, 1)
    assert measured["num_runs"] >= 5  # and more until they have taken a second
    assert measured["predicted_ratio"] <= measured["asked_ratio"] + 1e-9  # a correction may ask for more than the limit
    assert measured["device"] == "cpu, torch float32"
    assert outcome.row["requested_budget"] == "latency=0.98"
    assert outcome.plan.request["budget"]["latency"] == 0.98


@pytest.mark.parametrize(("budget", "text"), [({"size_mb": 0.5}, "size_mb=0.5"), ({"latency": 0.6}, "latency=0.6")])
def test_the_dry_run_prints_the_budget(budget: dict[str, float], text: str, tmp_path: Path) -> None:
    described = describe_plan(study_of(budget), None, RunDirectory(tmp_path))
    assert any(text in cell for row in described.rows for cell in row)
