"""Which images judge the weights that fine-tuning begins with, and what a trial says when they stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cleanai_ray.config.study import Study, parse_study
from cleanai_ray.stages.dense import prepare_dense
from cleanai_ray.stages.dense_measures import DenseMeasures
from cleanai_ray.stages.fingerprints import trial_key
from cleanai_ray.stages.outcome import run_trial
from cleanai_ray.stages.workspace import Workspace, open_workspace
from cleanai_ray.storage.image_schemas import roles_of_images

MODEL: dict[str, Any] = {"name": "resnet20", "num_classes": 10, "input_shape": [1, 8, 8]}
HARMFUL = 50.0
ADVICE = "weights, which were kept; a lower finetune.learning_rate, or finetune.epochs: 0, may serve"


def study_of(model: dict[str, Any], **evaluation: Any) -> Study:
    return parse_study(
        {
            "model": {**MODEL, **model},
            "data": {"name": "digits", "calibration": {"samples": 64}},
            "sweep": {"methods": ["magnitude"], "ratios": [0.3]},
            "repair": {"compensation": "none", "batch_norm": "reset", "samples": 64},
            "finetune": {"epochs": 1, "learning_rate": HARMFUL, "early_stopping": None},
            "evaluation": {"latency": None, **evaluation},
        }
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trained network, as weights from elsewhere."""
    path: Path = tmp_path_factory.mktemp("elsewhere") / "weights.safetensors"
    opened = open_workspace(study_of({"train": {"epochs": 4}}).model_dump_json(), "cpu")
    path.write_bytes(prepare_dense(opened).weights)
    return str(path)


class Noting(Workspace):
    """A workspace that notes which images of which role judge."""

    def batches(self, role: str, **options: Any) -> Any:
        if not options.get("trains") and role != "calibration":
            positions = options.get("positions")
            ASKED.append((role, None if positions is None else positions.tolist()))
        return super().batches(role, **options)


ASKED: list[tuple[str, list[int] | None]] = []


def run(study: Study) -> dict[str, Any]:
    opened = open_workspace(study.model_dump_json(), "cpu")
    dense = prepare_dense(opened)
    workspace = Noting(study=study, source=opened.source, roles=opened.roles, device=opened.device)
    ASKED.clear()
    torch.manual_seed(0)
    outcome = run_trial(workspace, study.trials()[0], dense, workspace.dense_model(dense.weights), DenseMeasures())
    return {**outcome.row, "marked": [row["is_best"] for row in outcome.history], "roles": opened.roles}


def test_given_weights_are_judged_by_the_images_that_decide(weights: str) -> None:
    row = run(study_of({"weights": weights}))
    assert (row["best_epoch"], row["epochs_run"], row["marked"]) == (0, 1, [False])
    assert row["accuracy"] == row["accuracy_finetuned"] == row["accuracy_repaired"] > 0.5
    unseen = "images that the given weights were not trained on"
    assert row["warnings"] == [f"fine-tuning: no epoch was better on {unseen} than the repaired {ADVICE}"]
    deciding = ("evaluation", np.flatnonzero(roles_of_images(row["roles"].evaluation, 0.5)).tolist())
    assert [deciding, ("validation", None), deciding] == ASKED


@pytest.mark.parametrize("evaluation", [{"validation_share": 0}, {"validation": {"samples": 50}}])
def test_without_unseen_images_that_decide_an_epoch_is_kept(weights: str, evaluation: dict[str, Any]) -> None:
    """All images are reported on, or those that decide are of the training split."""
    row = run(study_of({"weights": weights}, **evaluation))
    assert (row["best_epoch"], row["marked"], row["warnings"]) == (1, [True], [])
    assert row["accuracy_finetuned"] < row["accuracy_repaired"] - 0.2
    assert ASKED == [("validation", None)]


def test_weights_that_the_study_trained_are_judged_by_the_validation_images() -> None:
    row = run(study_of({"train": {"epochs": 4}}))
    assert (row["best_epoch"], row["marked"]) == (0, [False])
    assert row["accuracy_finetuned"] == row["accuracy_repaired"]
    assert row["warnings"] == [f"fine-tuning: no epoch was better on the validation images than the repaired {ADVICE}"]
    assert ASKED == [("validation", None)] * 2


def test_the_share_that_decides_is_part_of_trials_that_it_judges(weights: str) -> None:
    def keys(model: dict[str, Any]) -> set[str]:
        studies = [study_of(model, validation_share=share) for share in (0.3, 0.6)]
        return {trial_key(study, study.trials()[0], "dense") for study in studies}

    assert (len(keys({"weights": weights})), len(keys({"train": {"epochs": 4}}))) == (2, 1)
