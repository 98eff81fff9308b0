"""Saved models whose dense one has tied weights: plans of earlier versions untie them, and so may whoever trains on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import cleanai_ray as cleanai
from cleanai_ray.errors import ArtifactError
from cleanai_ray.pruning.plan import PruningPlan
from cleanai_ray.pruning.saved_model import apply_plan

VECTORS = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


class Blocks(nn.Module):
    """Two residual feed-forward blocks, whose first layers may have one weight, or which may be one module."""

    def __init__(self, *, ties: bool = True, shares: bool = False) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.a, self.b = nn.Linear(8, 10), nn.Linear(10, 8)
        self.a2, self.b2 = (self.a, nn.Linear(10, 8)) if shares else (nn.Linear(8, 10), nn.Linear(10, 8))
        if ties:
            self.a2.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.b(torch.relu(self.a(x)))
        x = x + self.b2(torch.relu(self.a2(x)))
        result: Tensor = self.head(x)
        return result


def blocks(**options: bool) -> Any:
    torch.manual_seed(0)
    return Blocks(**options).eval()


def prune(model: nn.Module) -> cleanai.PruneResult:
    return cleanai.prune(model, VECTORS[:1], method="magnitude", ratio=0.5, round_to=None)


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(VECTORS)
    return found


def write_as_before(folder: Path, plan: PruningPlan, state: Mapping[str, Tensor]) -> None:
    """Write what an earlier version did: a plan that says nothing of tied weights, and a weight for each layer."""
    content = safetensors.torch.save({name: value.detach().clone() for name, value in state.items()})
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(content)
    (folder / "plan.json").write_text(plan.with_weights(content).to_json())


def test_the_plan_says_what_was_tied() -> None:
    plans = [prune(blocks(ties=ties)).plan for ties in (True, False)]
    assert [plan.model.get("tied") for plan in plans] == [[["a.weight", "a2.weight"]], None]
    assert "tied" not in plans[1].to_json()


def test_a_plan_of_an_earlier_version_leaves_layers_weights_of_their_own(tmp_path: Path) -> None:
    """By such a plan, the layers of the two blocks lose other channels, and of their inputs the same; both trained."""
    removed = {"b2": (1, 5), "a": (0, 2), "a2": (3, 4, 7)}
    plan = prune(blocks(ties=False)).plan
    groups = {group.name: group for group in plan.groups}
    assert set(groups) == set(removed)
    plan = replace(plan, groups=tuple(replace(groups[name], removed=gone) for name, gone in removed.items()))
    dense = blocks()
    narrowed: Any = apply_plan(dense, plan)
    kept = {name: [c for c in range(groups[name].num_channels) if c not in gone] for name, gone in removed.items()}
    assert torch.equal(narrowed.a.weight, dense.a.weight[kept["a"]][:, kept["b2"]])
    assert torch.equal(narrowed.a2.weight, dense.a.weight[kept["a2"]][:, kept["b2"]])
    state = {name: torch.randn_like(value) for name, value in narrowed.state_dict().items()}
    write_as_before(tmp_path / "saved", plan, state)
    found = cleanai.load(tmp_path / "saved", blocks).state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())


@pytest.mark.parametrize("marked", [True, False])
def test_layers_that_were_tied_and_trained_apart_stay_apart(marked: bool, tmp_path: Path) -> None:
    """They lose the same channels, so that nothing but the values in the state says that they differ."""
    result = prune(blocks())
    model: Any = result.model
    assert model.a2.weight is model.a.weight
    model.a2.weight = nn.Parameter(model.a2.weight.detach() + 1.0)
    if marked:
        cleanai.save(model, tmp_path / "saved", plan=result.plan)
    else:
        plan = replace(result.plan, model={key: each for key, each in result.plan.model.items() if key != "tied"})
        write_as_before(tmp_path / "saved", plan, model.state_dict())
    found: Any = cleanai.load(tmp_path / "saved", blocks)
    assert torch.equal(found.a2.weight, found.a.weight + 1.0)
    assert torch.equal(outputs(found), outputs(model))


def test_parameters_that_no_cut_reaches_are_told_apart_as_well(tmp_path: Path) -> None:
    """The biases, which lose nothing here, are still one when the weights are read."""

    def factory() -> Any:
        model = blocks(ties=False)
        model.b2.bias = model.b.bias
        return model

    kept = ["stem", "head"]
    result = cleanai.prune(factory(), VECTORS[:1], method="magnitude", ratio=0.5, round_to=None, ignored_layers=kept)
    model: Any = result.model
    assert model.b2.bias is model.b.bias
    model.b2.bias = nn.Parameter(model.b2.bias.detach() + 1.0)
    cleanai.save(model, tmp_path, plan=result.plan)
    assert torch.equal(outputs(cleanai.load(tmp_path, factory)), outputs(model))


def test_one_layer_of_several_names_has_one_value(tmp_path: Path) -> None:
    """A module that has two names cannot be told apart without another model, so that it is refused."""
    result = prune(blocks(ties=False, shares=True))
    model: Any = result.model
    assert model.a2 is model.a
    model.a2 = copy.deepcopy(model.a)
    nn.init.zeros_(model.a2.bias)
    write_as_before(tmp_path / "saved", result.plan, model.state_dict())
    with pytest.raises(ArtifactError, match=r"they differ in 'a\.bias' and 'a2\.bias', which are one tensor"):
        cleanai.load(tmp_path / "saved", lambda: blocks(ties=False, shares=True))


def test_a_factory_that_ties_what_the_plan_cuts_apart_is_refused() -> None:
    plan = prune(blocks(ties=False)).plan
    groups = [replace(group, removed=(0,) if group.name == "a" else ()) for group in plan.groups]
    plan = replace(plan, groups=tuple(groups), model={**plan.model, "tied": [["a.weight", "a2.weight"]]})
    with pytest.raises(ArtifactError, match=r"another architecture \(Blocks\): layers 'a' and 'a2' share a weight"):
        apply_plan(blocks(), plan)
