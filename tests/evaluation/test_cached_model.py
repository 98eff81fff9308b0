from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from cleanai_ray.evaluation import cached_model
from cleanai_ray.evaluation.cached_model import CachedModel
from cleanai_ray.evaluation.comparison import compare


class Counted(nn.Module):
    """Counts how often it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.runs = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return self.layer(images)


def test_a_batch_seen_before_is_answered_without_the_model() -> None:
    dense, pruned = Counted(), Counted()
    batches = [(torch.randn(5, 4), torch.randint(3, (5,))) for _ in range(3)]
    plainly = compare(dense, pruned, batches)
    assert dense.runs == 3
    for _ in range(2):
        assert compare(CachedModel(dense), pruned, batches) == plainly
    assert dense.runs == 6
    changed = batches[0][0].clone()
    changed[4, 3] += 1e-3
    answer = _answer(CachedModel(dense), changed)
    assert dense.runs == 7
    assert torch.equal(answer, dense.layer(changed))


def test_batches_of_the_same_numbers_in_another_shape_are_others() -> None:
    model = Counted()
    images = torch.randn(2, 3, 4)
    assert _answer(CachedModel(model), images).shape == (2, 3, 3)
    assert _answer(CachedModel(model), images.reshape(3, 2, 4)).shape == (3, 2, 3)


def test_no_more_is_kept_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_model, "MAX_BYTES", 2 * 5 * 3 * 4)
    model = Counted()
    batches = [torch.randn(5, 4) for _ in range(3)]
    for images in (*batches, *batches):
        _answer(CachedModel(model), images)
    assert model.runs == 4


def test_training_is_never_answered_from_memory() -> None:
    model = Counted()
    images = torch.randn(5, 4)
    _answer(CachedModel(model), images)
    CachedModel(model).train()(images)
    CachedModel(model).eval()(images)
    assert model.runs == 3


def test_what_is_remembered_goes_with_the_model() -> None:
    before = len(cached_model._answers)
    model = Counted()
    _answer(CachedModel(model), torch.randn(5, 4))
    assert len(cached_model._answers) == before + 1
    del model
    gc.collect()
    assert len(cached_model._answers) == before


def _answer(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(images)
