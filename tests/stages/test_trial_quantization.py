"""Trials of a study that quantises: what they leave in the tables and beside the pruned model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load as load_state

from cleanai_ray.cli import main
from cleanai_ray.config.digests import digest
from cleanai_ray.config.study import Study, Trial, parse_study
from cleanai_ray.executors.writer import RunWriter, SavedTrialModel
from cleanai_ray.nn.weights import safetensors_bytes
from cleanai_ray.pruning.saved_model import save_model
from cleanai_ray.stages.dense import prepare_dense
from cleanai_ray.stages.dense_measures import DenseMeasures
from cleanai_ray.stages.outcome import TrialOutcome, run_trial
from cleanai_ray.stages.workspace import Workspace, open_workspace
from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory

onnxruntime = pytest.importorskip("onnxruntime")

STUDY: dict[str, Any] = {
    "model": {"name": "resnet20", "num_classes": 10, "input_shape": [1, 8, 8], "train": {"epochs": 2}},
    "data": {"name": "digits", "calibration": {"samples": 64}},
    "sweep": {"methods": ["magnitude"], "ratios": [0.3], "quantization": ["none", "int8", "bf16"]},
    "pruning": {"round_to": None},  # auto has other widths for int8
    "repair": {"compensation": "none", "batch_norm": "reset"},
    "evaluation": {"latency": {"batch_sizes": [1], "warmup": 1, "runs": 5}},
}


@pytest.fixture(scope="module")
def study() -> Study:
    return parse_study(STUDY)


@pytest.fixture(scope="module")
def workspace(study: Study) -> Workspace:
    return open_workspace(study.model_dump_json(), "cpu")


@pytest.fixture(scope="module")
def outcomes(study: Study, workspace: Workspace) -> dict[str, TrialOutcome]:
    dense = prepare_dense(workspace)
    model = workspace.dense_model(dense.weights)
    return {trial.quantization: run_trial(workspace, trial, dense, model, DenseMeasures()) for trial in study.trials()}


def test_the_accuracy_of_int8_is_that_of_its_file(workspace: Workspace, outcomes: dict[str, TrialOutcome]) -> None:
    row, quantized = outcomes["int8"].row, outcomes["int8"].quantized
    assert quantized is not None
    session = onnxruntime.InferenceSession(quantized.content, providers=["CPUExecutionProvider"])
    hits = [
        session.run(["logits"], {"images": images.numpy()})[0].argmax(1) == labels.numpy()
        for images, labels in workspace.batches("evaluation", batch_size=50)
    ]
    assert row["accuracy"] == row["accuracy_quantized"] == np.concatenate(hits).mean()
    assert row["num_evaluated"] == len(np.concatenate(hits))
    assert row["size_bytes"] == len(quantized.content)


def test_the_accuracy_of_bf16_is_that_of_its_weights(workspace: Workspace, outcomes: dict[str, TrialOutcome]) -> None:
    row, quantized, float_model = outcomes["bf16"].row, outcomes["bf16"].quantized, outcomes["bf16"].model
    assert quantized is not None
    assert float_model is not None
    assert row["size_bytes"] == len(quantized.content)
    # All but the header, and counts of batches that are integers.
    assert 0.5 < row["size_bytes"] / row["size_bytes_float"] < 0.55
    state = {name: value.float() for name, value in load_state(quantized.content).items()}
    assert all(
        torch.equal(value, state[name])
        for name, value in ((name, value.bfloat16().float()) for name, value in float_model.state_dict().items())
    )
    ((images, labels),) = workspace.batches("evaluation", batch_size=1000)
    with torch.no_grad():
        answers = quantized.model.model.eval()(images.bfloat16()).argmax(1)  # type: ignore[union-attr,operator]
    assert row["accuracy"] == row["accuracy_quantized"] == pytest.approx((answers == labels).double().mean().item())


def test_stages_before_quantisation_are_those_of_the_float_trial(outcomes: dict[str, TrialOutcome]) -> None:
    plain = outcomes["none"].row
    assert plain["accuracy"] == plain["accuracy_repaired"]
    assert plain["accuracy_quantized"] is None
    assert plain["size_bytes"] == plain["size_bytes_float"]
    for name in ("int8", "bf16"):
        row = outcomes[name].row
        assert row["quantization"] == name
        assert outcomes[name].plan == outcomes["none"].plan
        for column in (
            "accuracy_pruned",
            "accuracy_repaired",
            "size_bytes_float",
            "size_bytes_dense",
            "params",
            "macs",
        ):
            assert row[column] == plain[column], column
    schemas.to_table([outcome.row for outcome in outcomes.values()], schemas.RESULTS)


def test_each_is_timed_in_what_runs_it(outcomes: dict[str, TrialOutcome]) -> None:
    found = {name: {entry["backend"] for entry in outcome.latency} for name, outcome in outcomes.items()}
    assert found == {"none": {"eager"}, "int8": {"onnxruntime"}, "bf16": {"eager"}}
    backends = {name: outcome.row["latency_backend"] for name, outcome in outcomes.items()}
    assert backends == {"none": "eager", "int8": "onnxruntime", "bf16": "eager"}
    for outcome in outcomes.values():
        medians = {entry["variant"]: entry["latency_ms_p50"] for entry in outcome.latency}
        assert outcome.row["latency_ms_b1_p50"] == medians["pruned"]
        assert outcome.row["latency_ms_b1_p50_dense"] == medians["dense"]


def test_a_saved_model_has_its_quantised_file_beside_it(
    study: Study, outcomes: dict[str, TrialOutcome], tmp_path: Path
) -> None:
    outcome = outcomes["int8"]
    assert outcome.model is not None
    assert outcome.plan is not None
    assert outcome.quantized is not None
    weights = safetensors_bytes(outcome.model)
    trial_id = outcome.row["trial_id"]
    quantized = (outcome.quantized.file, outcome.quantized.content)
    plan = outcome.plan.with_weights(weights).to_json()
    model = SavedTrialModel(plan=plan, weights=weights, quantized=quantized)
    RunWriter(str(tmp_path), study).write_trial({"row": outcome.row}, "key", model)
    folder = tmp_path / "models" / trial_id
    assert sorted(path.name for path in folder.iterdir()) == ["int8.onnx", "plan.json", "weights.safetensors"]
    assert (folder / "int8.onnx").read_bytes() == outcome.quantized.content


def test_a_saved_float_model_is_exported_as_the_int8_trial_has_it(
    study: Study, workspace: Workspace, outcomes: dict[str, TrialOutcome], tmp_path: Path, capsys: Any
) -> None:
    plain, quantized = outcomes["none"], outcomes["int8"].quantized
    assert plain.model is not None
    assert plain.plan is not None
    assert quantized is not None
    run = RunDirectory(tmp_path)
    run.write_text("study.yaml", yaml.safe_dump(study.model_dump(mode="json")))
    run.write_table(schemas.RESULTS_FILE, schemas.to_table([plain.row], schemas.RESULTS))
    save_model(plain.model, plain.plan, run, f"models/{plain.row['trial_id']}")
    assert main(["export", str(tmp_path), "--format", "onnx_int8"]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.name == f"{plain.row['trial_id']}.int8.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ((images, _),) = workspace.batches("evaluation", batch_size=1000)
    (found,) = session.run(["logits"], {"images": images.numpy()})
    assert np.array_equal(found, quantized.model(images).numpy())


def test_no_quantisation_changes_no_identity() -> None:
    before = {
        "method": "wanda",
        "coverage_metric": None,
        "ratio": 0.3,
        "budget": None,
        "mode": "global",
        "steps": 1,
        "seed": 0,
        "options": {},
    }
    trials = {name: Trial(method="wanda", ratio=0.3, mode="global", quantization=name) for name in ("none", "int8")}  # type: ignore[arg-type]
    assert trials["none"].trial_id == f"wanda-global-r0.3-{digest(before)[:8]}"
    assert trials["int8"].trial_id == f"wanda-global-r0.3-int8-{digest({**before, 'quantization': 'int8'})[:8]}"
    for trial in trials.values():
        assert Trial.model_validate(trial.model_dump(mode="json")) == trial
