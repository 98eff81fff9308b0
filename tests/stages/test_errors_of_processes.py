"""Errors of processes that train together: one of all is the trial's, and one of a single process ends all of them."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from cleanai_ray.config.study import parse_study
from cleanai_ray.errors import CleanAIError, DataError, EvaluationError, ScoreError, ShareError
from cleanai_ray.stages import secondary_workers
from cleanai_ray.stages.finetune import _unlabelled
from cleanai_ray.stages.secondary_workers import assist_trial
from cleanai_ray.stages.workspace import Workspace, open_workspace
from cleanai_ray.tasks.score import NoLabelError
from cleanai_ray.training.context import TrainingError
from cleanai_ray.training.part import TrainingPart
from cleanai_ray.training.processes import ProcessGroupContext

OF_ALL = [TrainingError("t"), NoLabelError("n"), ScoreError("s"), ShareError("w")]
OF_ONE = [EvaluationError("e"), DataError("d")]


def workspace(batch_size: int, calibration: int = 20) -> Workspace:
    document = {
        "model": {"name": "resnet20", "num_classes": 10, "input_shape": [1, 8, 8]},
        "data": {"name": "digits", "batch_size": batch_size, "calibration": {"samples": calibration}},
        "sweep": {"methods": ["magnitude"], "ratios": [0.3]},
    }
    return open_workspace(parse_study(document).model_dump_json(), "cpu")


@pytest.mark.parametrize("error", [*OF_ALL, *OF_ONE], ids=lambda error: type(error).__name__)
def test_the_others_wait_after_an_error_of_one(error: CleanAIError, monkeypatch: pytest.MonkeyPatch) -> None:
    is_shared = error in OF_ALL
    assert pickle.loads(pickle.dumps(error)).in_all_processes == is_shared
    first: Any = ProcessGroupContext.__new__(ProcessGroupContext)
    monkeypatch.setattr(first, "_announce", lambda *_: setattr(first, "is_awaited", True), raising=False)
    with pytest.raises(type(error)), first.together(nn.Identity(), TrainingPart()):
        raise error
    assert first.is_awaited == (not is_shared)

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(secondary_workers, "fine_tune_part", fail)
    parts = iter([(nn.Identity(), TrainingPart()), None])
    second: Any = SimpleNamespace(rank=1, world_size=2, await_part=lambda: next(parts))
    nothing: Any = None
    if is_shared:
        assist_trial(nothing, nothing, nothing, nothing, second)
        assert next(parts, "no more") == "no more", "it waited for the next work"
        return
    with pytest.raises(type(error)):
        assist_trial(nothing, nothing, nothing, nothing, second)


@pytest.mark.parametrize("rank", [0, 2])
def test_every_process_has_an_image_to_validate_on(rank: int) -> None:
    """Of a batch of two images, a third process would have none, and the others would wait for its part of a sum."""
    opened = workspace(batch_size=2)
    with pytest.raises(ShareError, match="3 workers share a batch of 2 validation images; allowed: at most 2 workers"):
        opened.validation_batches((rank, 3))
    shares = [list(opened.validation_batches((number, 2))()) for number in range(2)]
    assert sum(len(images) for share in shares for images, _ in share) == len(opened.roles.validation)
    assert all(shares)


def test_images_without_labels_are_shared_out_likewise() -> None:
    """One calibration image in five is held back: 4 of 20, of which 5 processes cannot have one each."""
    opened = workspace(batch_size=50)
    with pytest.raises(ShareError, match="5 workers share a batch of 4 validation images; allowed: at most 4"):
        _unlabelled(opened, 0, None, (0, 5))
    _, _, validation = _unlabelled(opened, 0, None, (3, 4))
    assert sum(len(images) for images, _ in validation()) == 1
