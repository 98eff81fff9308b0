"""A study with controls: they run and resume like trials, their rows say what they are, and none is ever chosen."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import small_study as small
import torch
from torch import nn

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.config.study import Study, parse_study
from cleanai_ray.errors import ModelError
from cleanai_ray.executors.counts import SweepState
from cleanai_ray.executors.writer import RunWriter
from cleanai_ray.models import build_model
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.report import make_report
from cleanai_ray.stages.completed import record_name
from cleanai_ray.stages.planning import check_study, describe_plan
from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory

KINDS = ("scratch", "narrow", "dense_finetuned", "torch_pruning")
SETTINGS: dict[str, Any] = copy.deepcopy(small.SMALL) | {
    "name": "controlled",
    "sweep": {
        "methods": ["magnitude", "random"],
        "budgets": [{"macs": 0.5}],
        "modes": ["global"],
        "controls": {"kinds": list(KINDS), "widths_of": "random"},
    },
    "finetune": {"epochs": 1, "learning_rate": 0.001},
    "evaluation": {"samples": 200, "latency": None},
}


@pytest.fixture(scope="module")
def controlled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path, str]:
    study, folder = parse_study(SETTINGS), tmp_path_factory.mktemp("controlled")
    failed, said = small.run(study, folder, report=True)
    assert failed == 0, said
    return study, folder, said


def rows_by_kind(folder: Path, name: str = schemas.RESULTS_FILE) -> dict[str, list[dict[str, Any]]]:
    """Rows of a table by control; those of trials under an empty name."""
    kinds = {row["trial_id"]: row["control"] or "" for row in pq.read_table(folder / schemas.RESULTS_FILE).to_pylist()}
    found: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(folder / name).to_pylist():
        if row["trial_id"] in kinds:
            found.setdefault(kinds[row["trial_id"]], []).append(row)
    return found


def test_the_rows_say_what_they_are(controlled: tuple[Study, Path, str]) -> None:
    study, folder, _ = controlled
    rows = rows_by_kind(folder)
    assert {kind: len(found) for kind, found in rows.items()} == {"": 2, **dict.fromkeys(KINDS, 1)}
    assert sum(map(len, rows.values())) == len(study.trials())
    assert {kind: rows[kind][0]["method"] for kind in KINDS} == {kind: kind for kind in KINDS} | {"scratch": "random"}
    (dense,), (peer,) = rows["dense_finetuned"], rows["torch_pruning"]
    assert (dense["macs"], dense["channel_ratio_achieved"]) == (dense["macs_dense"], 0.0)
    assert dense["accuracy_pruned"] == dense["accuracy_dense"]
    assert (peer["repair"], peer["epochs_run"]) == ("reset", 1)
    assert 0.4 < peer["macs"] / peer["macs_dense"] <= 0.5


def test_networks_from_scratch_forget_what_was_pruned(controlled: tuple[Study, Path, str]) -> None:
    _, folder, _ = controlled
    rows, layers = rows_by_kind(folder), rows_by_kind(folder, schemas.LAYERS_FILE)
    (scratch,), (narrow,) = rows["scratch"], rows["narrow"]
    for row in (scratch, narrow):
        assert row["macs"] <= 0.5 * row["macs_dense"]
        assert row["accuracy_pruned"] is None
        assert row["repair"] is None
        assert row["accuracy_finetuned"] == row["accuracy"]
        # Two dense epochs are worth two over the share of the MACs, and the fine-tuning one more.
        assert row["epochs_run"] == round(2 * row["macs_dense"] / row["macs"] + 1)
        assert row["accuracy"] > 0.15
    trial = next(row["trial_id"] for row in rows[""] if row["method"] == "random")
    widths = {row["layer"]: row["out_channels"] for row in layers[""] if row["trial_id"] == trial}
    assert {row["layer"]: row["out_channels"] for row in layers["scratch"]} == widths
    kept = {
        round(row["out_channels"] / row["out_channels_dense"], 1) for row in layers["narrow"] if row["removed_channels"]
    }
    assert max(kept) - min(kept) <= 0.15  # a stage of 16 channels loses whole ones


def test_no_control_is_chosen_kept_or_told_as_the_best(controlled: tuple[Study, Path, str]) -> None:
    study, folder, said = controlled
    names = {row["trial_id"] for kind, rows in rows_by_kind(folder).items() if kind for row in rows}
    frames = StudyFrames.load(RunDirectory(folder))
    assert set(frames.controls["trial_id"]) == names
    for table in (frames.results, frames.layers, frames.classes, frames.history):
        assert not names & set(table["trial_id"])
    # The fine-tuned dense model is the most accurate by far, and has the first rank nowhere.
    best = max(frames.controls["accuracy"].to_list())
    assert best > max(frames.ok["accuracy"].to_list())
    assert frames.best is not None
    assert frames.best["trial_id"] not in names
    assert f"best: {frames.best['trial_id']}" in said
    assert not names & set(RunDirectory(folder).list("models"))
    state = SweepState(total=2, workers=1)
    state.finish({"status": schemas.OK, "accuracy": 0.99, "macs": 1, "trial_id": "a", "control": "dense_finetuned"})
    assert (state.done, state.best) == (1, "")
    control = next(trial for trial in study.trials() if trial.control is not None)
    assert not RunWriter(str(folder / "other"), study).wants_model({"trial_id": control.trial_id, "control": "scratch"})


def test_the_plan_counts_controls_and_they_resume(controlled: tuple[Study, Path, str]) -> None:
    study, folder, _ = controlled
    planned = describe_plan(study, check_study(study), RunDirectory(folder))
    assert len(planned.rows) == 6
    assert planned.summary[0].startswith("6 trials, 6 of them cached")
    assert {"random, from scratch", "narrow network", "dense, fine-tuned", "torch-pruning"} < {
        row[1] for row in planned.rows
    }
    before, run = small.timeless_table(folder), RunDirectory(folder)
    lost = [trial.trial_id for trial in study.trials() if trial.control is not None and trial.control.kind == "scratch"]
    for name in lost:
        run.mark(record_name(name), "of other inputs")
    failed, said = small.run(study, folder, report=True)
    assert failed == 0
    assert "5 of 6 trials were complete already" in said
    assert small.timeless_table(folder) == before


def test_the_report_compares_and_older_tables_are_read(controlled: tuple[Study, Path, str], tmp_path: Path) -> None:
    _, folder, _ = controlled
    page = (folder / "report.html").read_text()
    assert "Does pruning pay?" in page
    assert (folder / "charts" / "controls.svg").exists()
    table = pq.read_table(folder / schemas.RESULTS_FILE)
    trials = table.filter(pq.read_table(folder / schemas.RESULTS_FILE)["control"].is_null())
    pq.write_table(trials.drop_columns(["control"]), tmp_path / schemas.RESULTS_FILE)
    make_report(RunDirectory(tmp_path))
    assert StudyFrames.load(RunDirectory(tmp_path)).controls.is_empty()
    assert "Does pruning pay?" not in (tmp_path / "report.html").read_text()


def test_controls_that_all_failed_are_told(controlled: tuple[Study, Path, str], tmp_path: Path) -> None:
    rows = pq.read_table(controlled[1] / schemas.RESULTS_FILE).to_pylist()
    for row in rows:
        if row["control"] is not None:
            row |= {"status": schemas.FAILED, "error": f"the peer gave up on {row['control']}"}
    RunDirectory(tmp_path).write_table(schemas.RESULTS_FILE, schemas.to_table(rows, schemas.RESULTS))
    make_report(RunDirectory(tmp_path))
    page = (tmp_path / "report.html").read_text()
    assert "every control failed" in page
    assert "the peer gave up on scratch" in page


def test_random_weights_are_those_of_a_network_of_that_width() -> None:
    """ResNet-20 is initialised with a variance of 2 over 9 times its outputs, which half the width doubles."""
    from cleanai_ray.config.sections import PruningSection
    from cleanai_ray.pruning.pruner import Pruner
    from cleanai_ray.stages.train_anew import with_random_weights
    from cleanai_ray.stages.workspace import open_workspace

    study = parse_study({**SETTINGS, "sweep": {**SETTINGS["sweep"], "seeds": [0, 1], "budgets": [], "ratios": [0.5]}})
    workspace = open_workspace(study.model_dump_json(), "cpu")
    controls = [trial for trial in study.trials() if trial.control is not None and trial.control.kind == "narrow"]
    dense, example = build_model(study.model), workspace.example_input()
    bounds = PruningSection(round_to=None)
    plan = Pruner(dense, example, controls[0], bounds=bounds, ignored_layers=workspace.ignored_layers()).run().plan
    one, again, other = (with_random_weights(workspace, trial, plan) for trial in (*controls[:1] * 2, controls[1]))
    weights = [
        dict(model.named_parameters())["layer3.2.conv1.weight"].detach().numpy() for model in (one, again, other)
    ]
    assert weights[0].shape == (32, 32, 3, 3)
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])
    assert weights[0].std() == pytest.approx(math.sqrt(2 / (9 * 32)), rel=0.03)
    assert measure_complexity(one, example).macs < 0.3 * measure_complexity(dense, example).macs


def test_weights_that_do_not_depend_on_the_seed_are_no_random_ones() -> None:
    from cleanai_ray.stages.train_anew import _require_random

    def net(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))

    first, second = net(0), net(1)
    _require_random(first, second)
    second[1].load_state_dict(first[1].state_dict())  # type: ignore[index]
    with pytest.raises(ModelError, match="layer '1' has the same weights whatever the seed is"):
        _require_random(first, second)


@pytest.mark.ray
def test_ray_gives_the_same_rows(ray_session: Any, controlled: tuple[Study, Path, str], tmp_path: Path) -> None:
    study, folder, _ = controlled
    failed, said = small.run(study, tmp_path, "ray")
    assert failed == 0, said
    assert small.timeless_table(tmp_path) == small.timeless_table(folder)
