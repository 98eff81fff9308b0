"""Images of another split that choose: scored beside the others, by however many processes, and never mixed in."""

from __future__ import annotations

from functools import reduce
from operator import add
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cleanai_ray.config.study import parse_study
from cleanai_ray.errors import DataError
from cleanai_ray.evaluation.kept_logits import KeptLogits
from cleanai_ray.models import build_model
from cleanai_ray.stages.evidence import correct_row, image_rows, role_columns
from cleanai_ray.stages.scores import score_dense, score_share
from cleanai_ray.stages.task_scores import score_task_model, task_columns
from cleanai_ray.stages.workspace import Workspace, open_workspace
from cleanai_ray.storage.image_schemas import of_other_split, roles_of_images
from cleanai_ray.tasks import find_task
from cleanai_ray.training.part import ScoringPart

NUM_REPORTED, NUM_CHOOSING = 50, 70


@pytest.fixture(scope="module")
def workspace() -> Workspace:
    document = {
        "model": {"name": "resnet20", "num_classes": 10, "input_shape": [1, 8, 8]},
        "data": {"name": "digits", "batch_size": 20, "calibration": {"samples": 20}},
        "sweep": {"methods": ["magnitude"], "ratios": [0.3]},
        "evaluation": {"samples": NUM_REPORTED, "validation": {"samples": NUM_CHOOSING}},
    }
    return open_workspace(parse_study(document).model_dump_json(), "cpu")


@pytest.fixture(scope="module")
def models(workspace: Workspace) -> list[nn.Module]:
    return [build_model(workspace.study.model, seed=seed, task=workspace.task).eval() for seed in (0, 1)]


def test_a_study_that_trains_keeps_images_to_train_on(workspace: Workspace) -> None:
    number = workspace.source.num_samples("train") - len(workspace.roles.validation)
    elsewhere = {"samples": 20, "split": "test", "allow_overlap": True}
    document = {
        "model": {"name": "resnet20", "num_classes": 10, "input_shape": [1, 8, 8]},
        "data": {"name": "digits", "calibration": elsewhere},
        "sweep": {"methods": ["magnitude"], "ratios": [0.3]},
        "evaluation": {"validation": {"samples": number}},
    }
    learning = {"epochs": 1, "data": "calibration", "distillation": {"weight": 1.0}}
    for trains_not in ({}, {"finetune": learning}):
        opened = open_workspace(parse_study({**document, **trains_not}).model_dump_json(), "cpu")
        assert len(opened.roles.selection) == number
    for trains in ({"finetune": {"epochs": 1}}, {"model": {**document["model"], "train": {"epochs": 1}}}):
        with pytest.raises(DataError, match=f"samples is {number}; allowed: at most {number - 1}, "):
            open_workspace(parse_study({**document, **trains}).model_dump_json(), "cpu")


def right(model: nn.Module, workspace: Workspace, role: str) -> np.ndarray:
    with torch.no_grad():
        return np.concatenate([(model(x).argmax(1) == y).numpy() for x, y in workspace.batches(role)])


def test_numbers_of_two_splits_are_never_the_same() -> None:
    indices = np.arange(5)
    assert of_other_split(indices).tolist() == [-1, -2, -3, -4, -5]
    assert of_other_split(of_other_split(indices)).tolist() == indices.tolist()
    assert roles_of_images([-2, -1, 0, 1], None).tolist() == [True, True, False, False]


@pytest.mark.parametrize("num_processes", [1, 2, 3, 5])
def test_any_number_of_processes_scores_every_image_once(
    workspace: Workspace, models: list[nn.Module], num_processes: int
) -> None:
    dense, model = models
    score, logits = score_dense(workspace, dense)
    assert score.num_samples == NUM_REPORTED
    assert len(logits.numbers) == NUM_REPORTED + NUM_CHOOSING
    shares = [
        score_share(workspace, logits, model, ScoringPart(compares=True), (rank, num_processes))
        for rank in range(num_processes)
    ]
    found = reduce(add, [share for share in shares if share is not None]).whole()
    reported, choosing = right(model, workspace, "evaluation"), right(model, workspace, "selection")
    assert found.accuracy.num_samples == NUM_REPORTED
    assert found.accuracy.value == pytest.approx(reported.mean())
    assert found.hits is not None
    assert found.comparison is not None
    before = right(dense, workspace, "evaluation")
    assert found.comparison.lost == int((before & ~reported).sum())
    hits = dict(zip(found.hits.numbers.tolist(), found.hits.correct.tolist(), strict=True))
    assert [hits[number] for number in workspace.roles.evaluation.tolist()] == reported.tolist()
    assert [hits[-1 - number] for number in workspace.roles.selection.tolist()] == choosing.tolist()
    columns = role_columns(correct_row("a", logits, found.hits), logits, None)
    assert columns["accuracy_validation"] == pytest.approx(choosing.mean())
    assert columns["accuracy_test"] == pytest.approx(reported.mean())
    assert (columns["num_validation"], columns["num_test"]) == (NUM_CHOOSING, NUM_REPORTED)


def test_a_score_that_is_not_compared_is_of_the_reported_images_alone(
    workspace: Workspace, models: list[nn.Module]
) -> None:
    _, logits = score_dense(workspace, models[0])
    found = score_share(workspace, logits, models[1], ScoringPart(compares=False), (0, 1))
    assert found is not None
    assert (found.whole().accuracy.num_samples, found.hits) == (NUM_REPORTED, None)


def test_a_process_that_reads_none_of_its_reported_images_keeps_its_share_of_those_that_choose(
    workspace: Workspace, models: list[nn.Module]
) -> None:
    dense, model = models
    _, logits = score_dense(workspace, dense)
    is_read = ~np.isin(logits.numbers, workspace.roles.evaluation[40:])  # the second process has the third batch of 20
    fewer = KeptLogits(numbers=logits.numbers[is_read], values=logits.values[is_read])
    shares = [score_share(workspace, fewer, model, ScoringPart(compares=True), (rank, 2)) for rank in range(2)]
    found = reduce(add, [share for share in shares if share is not None]).whole()
    assert (found.accuracy.num_samples, found.comparison and found.comparison.num_samples) == (40, 40)
    assert found.hits is not None
    hits = dict(zip(found.hits.numbers.tolist(), found.hits.correct.tolist(), strict=True))
    choosing = right(model, workspace, "selection").tolist()
    assert [hits[-1 - number] for number in workspace.roles.selection.tolist()] == choosing


def test_rows_name_the_split_and_the_place_there() -> None:
    values = np.array([[2, 1], [1, 2], [2, 1]], dtype=np.float32)
    logits = KeptLogits(numbers=np.array([-8, -1, 4]), values=values, labels=np.array([0, 0, 0]))
    found = [(row["split"], row["number"], row["role"]) for row in image_rows(logits, "val", None, "train")]
    assert found == [("train", 7, "validation"), ("train", 0, "validation"), ("val", 4, "test")]


def test_a_task_is_scored_on_both_apart() -> None:
    """Squared errors of 1 on three reported samples, and of 4 on two that choose."""
    targets = torch.tensor([[1.0], [-1.0], [1.0]])
    fake: Any = SimpleNamespace(
        task=find_task("regression"),
        device=torch.device("cpu"),
        study=SimpleNamespace(evaluation=SimpleNamespace(deciding_share=None)),
        scored_batches=lambda: [(torch.arange(3), torch.zeros(3, 1), targets)],
        selection_batches=lambda: [(torch.tensor([-1, -2]), torch.zeros(2, 1), torch.tensor([[2.0], [-2.0]]))],
    )
    found, kept = score_task_model(fake, nn.Identity())
    assert (found.value, found.num_samples) == (1.0, 3)
    assert {role: (each.value, each.num_samples) for role, each in found.by_role.items()} == {
        "validation": (2.0, 2),
        "test": (1.0, 3),
    }
    assert kept.numbers.tolist() == [-2, -1, 0, 1, 2]
    columns = task_columns(found, found)
    assert (columns["score"], columns["score_test"], columns["score_validation"]) == (1.0, 1.0, 2.0)
    alone, _ = score_task_model(fake, nn.Identity(), chooses=False)
    assert (alone.value, dict(alone.by_role)) == (1.0, {})
