"""Models that return dicts, tuples and named tuples: their class scores are found, or asked for in one sentence."""

from __future__ import annotations

import copy
from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cleanai_ray as cleanai
from cleanai_ray.errors import ModelError
from cleanai_ray.models.outputs import with_scores

Both = namedtuple("Both", ["features", "scores"])
SHAPE = (1, 3)


class Net(nn.Module):
    """A network that returns its scores in some form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.conv, self.fc = nn.Conv2d(1, 16, 3, padding=1), nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Any:
        features = self.conv(images).relu().mean((2, 3))
        scores = self.fc(features)
        return {
            "tensor": lambda: scores,
            "dict": lambda: {"features": features, "scores": scores},
            "logits": lambda: {"aux": scores * 0, "logits": scores},
            "tuple": lambda: (features, scores),
            "named": lambda: Both(features, scores),
            "nested": lambda: {"out": [None, (scores, features)]},
            "two": lambda: (scores * 0, scores),
            "two in a dict": lambda: {"a": scores * 0, "b": {"c": scores}},
            "none": lambda: {"features": features},
            "training": lambda: {"scores": scores, "features": features} if not self.training else (scores, features),
        }[self.form]()


def wrapped(form: str, output: str | int | None = None) -> tuple[Net, nn.Module]:
    torch.manual_seed(0)
    net = Net(form).eval()
    return net, with_scores(net, net(torch.ones(1, 1, 4, 4)), SHAPE, output=output, what="model 'net'")


@pytest.mark.parametrize("form", ["tensor", "dict", "logits", "tuple", "named", "nested", "training"])
def test_class_scores_are_found_by_their_name_or_shape(form):
    net, model = wrapped(form)
    images = torch.randn(5, 1, 4, 4)
    expected = net.fc(net.conv(images).relu().mean((2, 3)))
    assert torch.equal(model(images), expected)
    assert list(model.state_dict()) == list(net.state_dict())
    assert torch.equal(copy.deepcopy(model)(images), expected)
    assert torch.equal(model.train()(images), expected)


@pytest.mark.parametrize(
    ("form", "output"),
    [("two", 1), ("two", "1"), ("two in a dict", "b.c"), ("two in a dict", "1.0"), ("named", "scores"), ("named", 1)],
)
def test_a_selector_says_which(form, output):
    net, model = wrapped(form, output)
    images = torch.randn(2, 1, 4, 4)
    assert torch.equal(model(images), net.fc(net.conv(images).relu().mean((2, 3))))


@pytest.mark.parametrize(
    ("form", "output", "message"),
    [
        ("two", None, r"several outputs of shape \[1, 3\]; needed: model\.output, one of '0', '1'"),
        ("two in a dict", None, r"needed: model\.output, one of 'a', 'b\.c'"),
        ("none", None, r"returns dict \(features \[1, 16\]\); allowed: one tensor of class scores of shape \[1, 3\]"),
        ("two", "logits", r"model\.output is 'logits', and model 'net' returns tuple .*; allowed: '0', '1'"),
        ("two", 2, r"model\.output is '2'"),
        ("tensor", "logits", r"allowed: null, since it returns one tensor"),
    ],
)
def test_what_could_mean_several_is_asked_for(form, output, message):
    with pytest.raises(ModelError, match=message):
        wrapped(form, output)


@pytest.mark.parametrize("form", ["dict", "two"])
def test_such_a_model_is_pruned_repaired_and_loaded(tmp_path, form):
    _, model = wrapped(form, 1 if form == "two" else None)
    images = torch.randn(40, 1, 4, 4)
    result = cleanai.prune(model, images[:1], [images], method="wanda", ratio=0.5, repair=True, round_to=None)
    assert result.model.conv.out_channels == 8
    cleanai.save(result, tmp_path)
    small = cleanai.load(tmp_path, lambda: wrapped(form, 1 if form == "two" else None)[1]).eval()
    assert torch.equal(small(images), result.model.eval()(images))
