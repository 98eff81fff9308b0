"""`model.factory`: imported from the current directory, called, and every fault said in one sentence."""

from __future__ import annotations

import sys

import pytest
import torch

from cleanai_ray.config.sections import ModelSection
from cleanai_ray.errors import ModelError
from cleanai_ray.models import build_model, example_input, ignored_layers

SOURCE = """
import torch
from torch import nn

def tiny(num_classes, width=4):
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(width * 36, num_classes))

def fixed():
    return tiny(10)

def anything(**kwargs):
    return tiny(**kwargs)

def fails(num_classes):
    raise RuntimeError("no such\\nluck.")

def number(num_classes):
    return 5

def pair(num_classes):
    class Pair(nn.Module):
        def forward(self, x):
            return x, x
    return Pair()

constant = 3
"""


@pytest.fixture
def in_project(tmp_path, monkeypatch):
    (tmp_path / "users_own_models.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "users_own_models", raising=False)
    yield tmp_path
    sys.modules.pop("users_own_models", None)


def section(function: str, module: str = "users_own_models", **fields) -> ModelSection:
    return ModelSection(factory=f"{module}:{function}", **{"num_classes": 10, "input_shape": (1, 8, 8), **fields})


@pytest.mark.parametrize("function", ["tiny", "fixed", "anything"])
def test_a_factory_of_the_current_directory_is_called(in_project, function):
    before = list(sys.path)
    spec = section(function)
    model = build_model(spec)
    with torch.no_grad():
        assert model(example_input(spec, 2)).shape == (2, 10)
    assert sys.path == before
    assert ignored_layers(spec) == ("3",)


def test_options_and_seed_reach_the_factory(in_project):
    spec = section("tiny", options={"width": 6})
    first, again, other = build_model(spec, seed=1), build_model(spec, seed=1), build_model(spec, seed=2)
    assert first[0].out_channels == 6
    assert torch.equal(first[0].weight, again[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (section("tiny", options={"depth": 2}), ["'depth'", "users_own_models:tiny", "allowed: width"]),
        (section("tiny", options={"num_classes": 2}), ["'num_classes'"]),
        (section("tiny", module="no_such_module"), ["no_such_module", "cannot be imported"]),
        (section("missing"), ["'missing'", "tiny"]),
        (section("constant"), ["'constant'", "tiny"]),
        (section("fails"), ["RuntimeError", "no such luck"]),
        (section("number"), ["int", "torch.nn.Module"]),
        (section("pair"), ["tuple", "one tensor"]),
        (section("fixed", num_classes=3), ["[1, 10]", "[1, 3]", "model.num_classes"]),
        (section("tiny", input_shape=(1, 9, 9)), ["[1, 9, 9]", "does not run"]),
        (section("tiny", weights="pretrained"), ["'pretrained'", "model.factory"]),
    ],
)
def test_faults_are_one_sentence(in_project, spec, words):
    with pytest.raises(ModelError) as caught:
        build_model(spec)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
