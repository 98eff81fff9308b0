"""Views of models: what they share with the model, and that copies and other processes get the same."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from cleanai_ray.models.outputs import with_scores
from cleanai_ray.nn.view import as_model, as_network
from cleanai_ray.tasks import find_task


class Answers(nn.Module):
    """A classifier that returns two outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.calls = 0

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        return {"aside": inputs, "scores": self.layer(inputs)}


def selected() -> nn.Module:
    model = Answers()
    view = with_scores(model, model(torch.zeros(1, 3)), (1, 2), output="scores", what="the model")
    assert isinstance(view, Answers)
    return view


def pickled(view: nn.Module) -> nn.Module:
    found = pickle.loads(pickle.dumps(view))
    assert isinstance(found, nn.Module)
    return found


@pytest.mark.parametrize("duplicate", [pickled, copy.deepcopy])
def test_a_duplicate_is_a_view_of_a_model_of_its_own(duplicate) -> None:
    view, inputs = selected(), torch.ones(1, 3)
    with torch.no_grad():
        expected = as_model(view)(inputs)["scores"]
        found = duplicate(view)
        assert torch.equal(found(inputs), expected)
        found.layer.weight.zero_()
        assert torch.equal(view(inputs), expected)  # nothing is shared
        assert torch.equal(as_model(found)(inputs)["scores"], found.layer.bias[None])
    assert type(found) is type(view)
    assert type(as_model(found)) is Answers


def test_a_shallow_copy_shares_the_weights() -> None:
    view = selected()
    found = copy.copy(view)
    assert type(found) is type(view)
    assert found.layer is view.layer
    assert found.calls == view.calls == 1


def test_a_view_of_a_view_shows_the_inner_one() -> None:
    view = selected()
    negative = as_network(view, _negative)
    inputs = torch.ones(2, 3)
    assert torch.equal(pickled(negative)(inputs), -view(inputs))


def _negative(network, inputs: Tensor) -> Tensor:
    return -as_model(network)(inputs)


def test_the_views_of_a_task_can_be_sent() -> None:
    model, images = nn.Sequential(nn.Conv2d(3, 4, 1)), torch.rand(1, 3, 8, 8)
    view = find_task("segmentation").network(model)
    with torch.no_grad():
        assert torch.equal(pickled(view)(images)[0], model(images))
