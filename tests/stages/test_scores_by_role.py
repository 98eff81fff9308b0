"""Scores of tasks other than classification by role: a role without a label has none, and the study goes on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cleanai_ray.errors import EvaluationError
from cleanai_ray.stages.task_scores import score_task_model
from cleanai_ray.storage.image_schemas import roles_of_images
from cleanai_ray.tasks import find_task

NUMBER, SHARE = 12, 0.5
DECIDES = torch.from_numpy(roles_of_images(list(range(NUMBER)), SHARE))
CASES: dict[str, tuple[Tensor, Tensor, Tensor]] = {
    "multilabel_classification": (torch.zeros(NUMBER, 2), torch.zeros(2), torch.ones(2)),
    "segmentation": (torch.zeros(NUMBER, 2, 3, 3), torch.full((3, 3), 255), torch.ones(3, 3, dtype=torch.long)),
    "language_modelling": (torch.zeros(NUMBER, 3, 4), torch.full((3,), -100), torch.ones(3, dtype=torch.long)),
}
"""Of each task: inputs, the target of a sample without a label, and of one with."""


def workspace(task: str, is_labelled: Tensor) -> Any:
    inputs, without, given = CASES[task]
    targets = torch.stack([given if each else without for each in is_labelled])
    return SimpleNamespace(
        task=find_task(task),
        device=torch.device("cpu"),
        study=SimpleNamespace(evaluation=SimpleNamespace(deciding_share=SHARE)),
        selection_batches=lambda: [],
        scored_batches=lambda: [(torch.arange(NUMBER), inputs, targets)],
    )


@pytest.mark.parametrize("task", CASES)
def test_a_role_without_a_label_has_no_score(task: str) -> None:
    assert 0 < int(DECIDES.sum()) < NUMBER
    model = nn.Identity()
    everywhere, _ = score_task_model(workspace(task, torch.ones(NUMBER)), model)
    assert {role: score.num_samples for role, score in everywhere.by_role.items()} == {
        "validation": int(DECIDES.sum()),
        "test": int((~DECIDES).sum()),
    }
    for is_labelled in (DECIDES, ~DECIDES):
        found, _ = score_task_model(workspace(task, is_labelled), model)
        assert found.num_samples == NUMBER
        assert not found.by_role
    with pytest.raises(EvaluationError, match=r"the evaluation samples have no score: .* at least 1"):
        score_task_model(workspace(task, torch.zeros(NUMBER)), model)
