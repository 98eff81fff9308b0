"""Pruning by torch-pruning's own pruner: the model that it leaves, with a plan that says how to get there."""

from __future__ import annotations

import copy

import pytest
import small_nets
import torch
import torch_pruning as tp
from torch import nn

from cleanai_ray.config.sections import PruningSection
from cleanai_ray.config.study import Trial
from cleanai_ray.config.sweep import Budget
from cleanai_ray.errors import PruningError
from cleanai_ray.models.resnet20 import ResNetCifar
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.pruning.peer_pruner import PeerPruner
from cleanai_ray.pruning.saved_model import apply_plan


def classifier(model: nn.Module) -> str:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]


def peer(model: nn.Module, ratio: float) -> nn.Module:
    """torch-pruning alone, as its documentation has it."""
    model = copy.deepcopy(model).requires_grad_(True)
    pruner = tp.pruner.BasePruner(
        model,
        small_nets.example(),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=[model.get_submodule(classifier(model))],
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
        channel_groups={},
    )
    pruner.step()
    return model


@pytest.mark.parametrize("name", small_nets.NETS)
def test_the_model_is_torch_prunings_own(name: str) -> None:
    dense = small_nets.build(name)
    trial = Trial(method="magnitude", ratio=0.5)
    result = PeerPruner(dense, small_nets.example(), trial, ignored_layers=[classifier(dense)]).run()
    theirs, images = peer(dense, 0.5), small_nets.example(4)
    with torch.no_grad():
        assert torch.equal(result.model(images), theirs(images))
        assert torch.equal(apply_plan(dense, result.plan)(images), theirs(images))
    assert measure_complexity(theirs, images[:1]).params < measure_complexity(dense, images[:1]).params


def test_bounds_of_the_study_do_not_hold_but_for_ignored_layers() -> None:
    dense = small_nets.build("plain")
    bounds = PruningSection(round_to=8, ignored_layers=("conv1",))
    trial = Trial(method="magnitude", ratio=0.5)
    plan = PeerPruner(dense, small_nets.example(), trial, bounds=bounds, ignored_layers=["fc"]).run().plan
    assert {name: len(channels) for name, channels in plan.removed.items()} == {"conv2": 4}
    assert plan.request["bounds"]["round_to"] is None


@pytest.mark.parametrize("budget", [Budget(macs=0.5), Budget(params=0.3)])
def test_a_budget_is_met_by_the_least_ratio_that_meets_it(budget: Budget) -> None:
    torch.manual_seed(0)
    dense = ResNetCifar(10, 1, (16, 32, 64)).eval()
    trial = Trial(method="magnitude", budget=budget)
    result = PeerPruner(dense, torch.randn(1, 1, 8, 8), trial, ignored_layers=["fc"]).run()
    cost, whole = (
        getattr(measure_complexity(each, torch.randn(1, 1, 8, 8)), budget.resource) for each in (result.model, dense)
    )
    # A channel of 64 is the least step: one more of each group costs less than 6 % of what is left.
    assert 0.94 * budget.limit <= cost / whole <= budget.limit


def test_attention_is_refused_in_a_sentence() -> None:
    trial = Trial(method="magnitude", ratio=0.5)
    example = torch.randn(1, 3, 16, 16)
    with pytest.raises(PruningError, match=r"torch_pruning is for models without attention.*sweep.controls.kinds"):
        PeerPruner(small_nets.tiny_vit(), example, trial, ignored_layers=["heads.head"]).run()
