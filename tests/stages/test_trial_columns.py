"""What a trial's row and its rows of classes.parquet say of the model after the last stage, beside the dense one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cleanai_ray.analysis.intervals import Interval, wilson
from cleanai_ray.config.study import parse_study
from cleanai_ray.evaluation.accuracy import evaluate
from cleanai_ray.evaluation.significance import mcnemar_p
from cleanai_ray.stages.columns import latency_columns
from cleanai_ray.stages.dense import prepare_dense
from cleanai_ray.stages.dense_measures import DenseMeasures
from cleanai_ray.stages.outcome import TrialOutcome, run_trial
from cleanai_ray.stages.workspace import Workspace, open_workspace
from cleanai_ray.storage import schemas

STUDY: dict[str, Any] = {
    "model": {"name": "resnet20", "num_classes": 10, "input_shape": [1, 8, 8], "train": {"epochs": 2}},
    "data": {"name": "digits", "calibration": {"samples": 64}},
    "sweep": {"methods": ["magnitude"], "ratios": [0.3]},
    "repair": {"compensation": "none", "batch_norm": "reset"},
    "finetune": {"epochs": 1},
    "evaluation": {"samples": 150, "latency": None},
}


@pytest.fixture(scope="module")
def trial() -> tuple[Workspace, nn.Module, TrialOutcome]:
    study = parse_study(STUDY)
    workspace = open_workspace(study.model_dump_json(), "cpu")
    dense = prepare_dense(workspace)
    model = workspace.dense_model(dense.weights)
    return workspace, model, run_trial(workspace, study.trials()[0], dense, model, DenseMeasures())


def answers(workspace: Workspace, model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and labels of all evaluation images, from a single batch."""
    ((images, labels),) = workspace.batches("evaluation", batch_size=1000)
    with torch.no_grad():
        return model.eval()(images).double().log_softmax(1), labels


def test_the_last_stage_is_compared(trial: tuple[Workspace, nn.Module, TrialOutcome]) -> None:
    workspace, dense, outcome = trial
    row = outcome.row
    assert outcome.model is not None
    (before, labels), (after, _) = answers(workspace, dense), answers(workspace, outcome.model)
    dense_hits, hits = before.argmax(1) == labels, after.argmax(1) == labels
    assert row["accuracy"] == row["accuracy_finetuned"] == pytest.approx(hits.double().mean().item())
    assert row["accuracy_dense"] == pytest.approx(dense_hits.double().mean().item())
    assert row["agreement"] == pytest.approx((before.argmax(1) == after.argmax(1)).double().mean().item())
    assert row["kl_to_dense"] == pytest.approx((before.exp() * (before - after)).sum(1).mean().item(), rel=1e-4)
    assert row["lost"] == sum(one and not other for one, other in zip(dense_hits, hits, strict=True))
    assert row["gained"] == sum(other and not one for one, other in zip(dense_hits, hits, strict=True))
    assert row["mcnemar_p"] == mcnemar_p(row["lost"], row["gained"])
    assert Interval(row["accuracy_low"], row["accuracy_high"]) == wilson(int(hits.sum()), 150)
    assert 0 <= row["ece"] <= 1
    assert 0 <= row["ece_dense"] <= 1
    assert row["is_broken"] is False
    schemas.to_table([row], schemas.RESULTS)


def test_every_image_that_the_model_gets_right_is_kept(trial: tuple[Workspace, nn.Module, TrialOutcome]) -> None:
    workspace, dense, outcome = trial
    row = outcome.row
    assert outcome.model is not None
    (before, labels), (after, _) = answers(workspace, dense), answers(workspace, outcome.model)
    dense_hits, hits = (before.argmax(1) == labels).numpy(), (after.argmax(1) == labels).numpy()
    (kept,) = outcome.hits
    assert (kept["trial_id"], kept["num_images"], kept["scored"]) == (row["trial_id"], 150, None)
    bits = "".join(f"{int(digit, 16):04b}" for digit in kept["correct"])
    assert [bit == "1" for bit in bits[:150]] == hits.tolist()
    assert set(bits[150:]) <= {"0"}
    decides = np.array([_draw(number) < 0.5 for number in workspace.roles.evaluation])
    assert 50 < decides.sum() < 100
    assert row["accuracy_validation"] == pytest.approx(hits[decides].mean())
    assert row["accuracy_test"] == pytest.approx(hits[~decides].mean())
    assert row["accuracy_validation_dense"] == pytest.approx(dense_hits[decides].mean())
    assert row["accuracy_test_dense"] == pytest.approx(dense_hits[~decides].mean())
    assert (row["num_validation"], row["num_test"]) == (decides.sum(), 150 - decides.sum())


def _draw(number: int) -> float:
    """The random number of an image, drawn one after another from the first image of the split."""
    generator = np.random.default_rng([3])
    return [generator.random() for _ in range(number + 1)][-1]


def test_the_epoch_that_is_kept_was_chosen_on_images_that_are_not_scored(
    trial: tuple[Workspace, nn.Module, TrialOutcome],
) -> None:
    workspace, _, outcome = trial
    roles = workspace.roles
    assert roles.validation_split == roles.training_split != roles.evaluation_split
    assert outcome.model is not None
    (kept,) = [row for row in outcome.history if row["is_best"]]
    found = {role: evaluate(outcome.model, workspace.batches(role)) for role in ("validation", "evaluation")}
    assert kept["validation_accuracy"] == found["validation"].accuracy != found["evaluation"].accuracy
    assert kept["validation_loss"] == pytest.approx(found["validation"].loss)
    assert outcome.row["accuracy"] == found["evaluation"].accuracy


def test_its_classes_add_up_to_it(trial: tuple[Workspace, nn.Module, TrialOutcome]) -> None:
    _, _, outcome = trial
    row, classes = outcome.row, outcome.classes
    assert {entry["trial_id"] for entry in classes} == {row["trial_id"]}
    assert sorted(entry["label"] for entry in classes) == list(range(10))
    assert sum(entry["num_evaluated"] for entry in classes) == row["num_evaluated"] == 150
    for name in ("accuracy", "accuracy_dense"):
        assert sum(entry[name] * entry["num_evaluated"] for entry in classes) / 150 == pytest.approx(row[name])
    changes = [entry["change"] for entry in classes]
    assert changes == sorted(changes)
    assert sum(entry["change"] * entry["num_evaluated"] for entry in classes) == pytest.approx(
        row["gained"] - row["lost"]
    )
    schemas.to_table(classes, schemas.CLASSES)


def test_a_trial_without_repair_and_fine_tuning_is_compared_after_surgery() -> None:
    study = parse_study(
        {
            **STUDY,
            "model": {**STUDY["model"], "train": None},
            "repair": {"compensation": "none", "batch_norm": "none"},
            "finetune": {"epochs": 0},
            "evaluation": {"samples": 50, "latency": None},
        }
    )
    workspace = open_workspace(study.model_dump_json(), "cpu")
    dense = prepare_dense(workspace)
    model = workspace.dense_model(dense.weights)
    row = run_trial(workspace, study.trials()[0], dense, model, DenseMeasures()).row
    assert row["accuracy"] == row["accuracy_pruned"]
    assert round((row["accuracy"] - row["accuracy_dense"]) * 50) == row["gained"] - row["lost"]
    assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]


def timed(backend: str, batch_size: int, variant: str, milliseconds: float) -> dict[str, Any]:
    times = {f"latency_ms_p{rank}": milliseconds + rank for rank in (50, 90, 99)}
    ends = dict.fromkeys(("speedup", "speedup_low", "speedup_high"))
    if variant == "pruned":
        ends = {"speedup": milliseconds / 4, "speedup_low": milliseconds / 8, "speedup_high": milliseconds / 2}
    where = {"backend": backend, "batch_size": batch_size, "variant": variant, "num_threads": 2}
    return {**where, **times, **ends, "throughput": 1000 * milliseconds}


def test_the_latency_of_a_trial_is_that_of_eager_torch_whatever_else_was_timed() -> None:
    shapes = [(size, variant) for size in (1, 8) for variant in ("dense", "pruned")]
    rows = [
        timed(backend, size, variant, milliseconds=offset + size)
        for backend, offset in (("onnxruntime", 100.0), ("eager", 3.0))
        for size, variant in shapes
    ]
    assert latency_columns(rows) == {
        "num_threads": 2,
        "latency_backend": "eager",
        "latency_ms_b1_p50_dense": 54.0,
        "latency_ms_b1_p50": 54.0,
        "latency_ms_b1_p90": 94.0,
        "speedup_b1": 1.0,
        "speedup_b1_low": 0.5,
        "speedup_b1_high": 2.0,
        "throughput_dense": 11000.0,
        "throughput": 11000.0,
    }
    assert latency_columns([row for row in rows if row["backend"] != "eager"]) == {}
    assert latency_columns([]) == {}
