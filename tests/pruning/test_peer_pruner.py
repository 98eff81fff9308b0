"""Pruning by torch-pruning's own pruner: the model that it leaves, with a plan that says how to get there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import small_nets
import torch
import torch_pruning as tp
from torch import Tensor, nn

from cleanai_ray.config.blocks import BlocksSection
from cleanai_ray.config.sections import PruningSection
from cleanai_ray.config.study import Trial
from cleanai_ray.config.sweep import Budget
from cleanai_ray.errors import PruningError
from cleanai_ray.models.resnet20 import ResNetCifar
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.pruning.peer_pruner import PeerPruner
from cleanai_ray.pruning.pruner import Pruner
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


def test_a_plan_tells_no_bound_that_torch_pruning_does_not_keep_to() -> None:
    """Patterns of equal widths neither fail it nor make it warn; half of 8 channels goes, whatever max_ratio is."""
    dense, trial = small_nets.build("plain"), Trial(method="magnitude", ratio=0.5)
    bounds = PruningSection(
        equal_widths=("conv?", "none.*"),
        max_ratio=0.4,
        min_channels=6,
        layer_ratios={"conv1": 0.1},
        remove_blocks=BlocksSection(names=("conv1",)),
        ignored_layers=("conv1",),
    )
    plan = PeerPruner(dense, small_nets.example(), trial, bounds=bounds, ignored_layers=["fc"]).run().plan
    assert {name: len(channels) for name, channels in plan.removed.items()} == {"conv2": 4}
    assert plan.request["bounds"] == {
        "ignored_layers": ["conv1", "fc"],
        "max_ratio": 1.0,
        "min_channels": 1,
        "round_to": None,
    }
    assert plan.warnings == ()
    assert "equal_widths" not in plan.explain()


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


class Meeting(nn.Module):
    """Two convolutions whose maps meet in a way that the test sets, one that reads both, and one that reads that."""

    def __init__(self, meet: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.meet, self.one, self.other = meet, nn.Conv2d(2, 8, 1), nn.Conv2d(2, 8, 1)
        self.read, self.last, self.fc = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 12, 1), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.meet(self.one(x).relu(), self.other(x).relu())
        return self.fc(self.last(self.read(x).relu()).relu().mean((2, 3)))


def only_at_eight(one: Tensor, other: Tensor) -> Tensor:
    if one.shape[1] != 8:
        raise ValueError("not eight channels")
    return torch.cat([one, other], 1)


def not_at_six(one: Tensor, other: Tensor) -> Tensor:
    """Fails at the width that a ratio of a quarter leaves, and at no other."""
    if one.shape[1] == 6:
        raise ValueError("six channels")
    return torch.cat([one, other], 1)


def rolled_at_six(one: Tensor, other: Tensor) -> Tensor:
    """Computes something else at that width."""
    return torch.cat([one.roll(1, 1) if one.shape[1] == 6 else one, other], 1)


@pytest.mark.parametrize("meet", [only_at_eight, not_at_six, rolled_at_six])
def test_a_layer_that_cannot_be_narrowed_keeps_its_width_as_with_our_methods(
    meet: Callable[[Tensor, Tensor], Tensor],
) -> None:
    """With that layer ignored, torch-pruning leaves 6 of 8, 12 of 16 and 9 of 12 channels of the others."""
    images, trial = torch.randn(2, 2, 4, 4), Trial(method="magnitude", ratio=0.25)
    dense = Meeting(meet).eval()
    ours = Pruner(dense, images, trial, ignored_layers=["fc"], bounds=PruningSection(round_to=None)).run()
    kept = {group.name for group in ours.plan.groups if not group.removed}
    result = PeerPruner(dense, images, trial, ignored_layers=["fc"]).run()
    assert result.model.one.out_channels == 8
    widths = [getattr(result.model, name).out_channels for name in ("other", "read", "last")]
    assert widths == [6, 12, 9]
    assert kept <= {"one"}
    assert any("'one'" in warning for warning in result.plan.warnings)
    theirs = copy.deepcopy(dense).requires_grad_(True)
    tp.pruner.BasePruner(
        theirs,
        images,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.25,
        ignored_layers=[theirs.one, theirs.fc],
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
        channel_groups={},
    ).step()
    with torch.no_grad():
        torch.testing.assert_close(result.model(images), theirs(images))


def test_a_budget_is_met_beside_a_layer_that_cannot_be_narrowed() -> None:
    images, trial = torch.randn(2, 2, 4, 4), Trial(method="magnitude", budget=Budget(macs=0.6))
    dense = Meeting(only_at_eight).eval()
    result = PeerPruner(dense, images, trial, ignored_layers=["fc"]).run()
    cost, whole = (measure_complexity(each, images[:1]).macs for each in (result.model, dense))
    assert 0.4 * whole < cost <= 0.6 * whole
    assert result.model.one.out_channels == 8


class Single(nn.Module):
    """One convolution, which cannot have six channels."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.fc = nn.Conv2d(2, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        if x.shape[1] == 6:
            raise ValueError("six channels")
        return self.fc(x.mean((2, 3)))


def test_where_no_layer_is_left_to_narrow_the_trial_fails_in_a_sentence() -> None:
    trial = Trial(method="magnitude", ratio=0.25)
    with pytest.raises(PruningError, match=r"no prunable group of layers.*'one'"):
        PeerPruner(Single().eval(), torch.randn(2, 2, 4, 4), trial, ignored_layers=["fc"]).run()


def test_whatever_torch_pruning_raises_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("layer\nnine")

    monkeypatch.setattr(tp.pruner, "BasePruner", fail)
    trial, told = Trial(method="magnitude", ratio=0.5), r"torch-pruning fails on this model \(KeyError: .*\); leave "
    with pytest.raises(PruningError, match=told):
        PeerPruner(small_nets.build("plain"), small_nets.example(), trial, ignored_layers=["fc"]).run()


def test_attention_is_refused_in_a_sentence() -> None:
    trial = Trial(method="magnitude", ratio=0.5)
    example = torch.randn(1, 3, 16, 16)
    with pytest.raises(PruningError, match=r"torch_pruning is for models without attention.*sweep.controls.kinds"):
        PeerPruner(small_nets.tiny_vit(), example, trial, ignored_layers=["heads.head"]).run()
