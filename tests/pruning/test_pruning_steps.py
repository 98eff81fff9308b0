"""Pruning in several steps: the schedule, the end result and the bookkeeping."""

from __future__ import annotations

import copy

import pytest
import torch
from small_nets import NETS, batches, build, example
from torch import nn

from cleanai_ray import api, calibrate
from cleanai_ray.config.sections import PruningSection
from cleanai_ray.config.study import Trial
from cleanai_ray.nn.consumers import add_biases
from cleanai_ray.pruning.measurements import Measurements
from cleanai_ray.pruning.prune_result import PruneResult
from cleanai_ray.pruning.pruner import Pruner
from cleanai_ray.registry import MODELS
from cleanai_ray.statistics import ActivationStatistics

ANY_WIDTH = PruningSection(round_to=None)


def widths(model: nn.Module) -> dict[str, int]:
    return {name: module.weight.shape[0] for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.77])
@pytest.mark.parametrize("net", NETS)
def test_three_steps_end_at_the_widths_of_one(net: str, ratio: float) -> None:
    model, data = build(net), batches()
    for method in ("coverage", "adaptive", "magnitude", "taylor"):
        one, three = (
            api.prune(model, example(), data, method=method, ratio=ratio, steps=steps, round_to=None)
            for steps in (1, 3)
        )
        assert widths(one.model) == widths(three.model), method


def test_steps_and_bounds_together_end_at_the_widths_of_one() -> None:
    torch.manual_seed(0)
    model = MODELS.get("resnet20")().build(num_classes=10, input_shape=(1, 16, 16)).eval()
    images = example(1, size=16, channels=1)
    options = {"layer_ratios": {"layer2": 0.25}, "round_to": 4, "max_ratio": 0.8, "min_channels": 8}
    one, three = (
        api.prune(model, images, method="magnitude", ratio=0.6, steps=steps, **{"round_to": None, **options})
        for steps in (1, 3)
    )
    assert widths(one.model) == widths(three.model)


class Recorder:
    """Calibrates the smaller model, and records its widths."""

    def __init__(self) -> None:
        self.seen: list[dict[str, int]] = []

    def __call__(self, model: nn.Module) -> ActivationStatistics:
        self.seen.append(widths(model))
        return calibrate(model, batches())


def test_what_is_kept_shrinks_geometrically() -> None:
    """Ratio 0.75 in 2 steps keeps the square root of a quarter, then a quarter: 8 -> 4 -> 2 and 6 -> 3 -> 1."""
    recorder = Recorder()
    model = build("plain")
    trial = Trial(method="adaptive", coverage_metric="apoz", ratio=0.75, steps=2)
    statistics = calibrate(model, batches())
    result = Pruner(
        model, example(), trial, measured=Measurements(statistics=statistics, remeasure=recorder), bounds=ANY_WIDTH
    ).run()
    assert recorder.seen == [{"conv1": 3, "conv2": 4}]
    assert widths(result.model) == {"conv1": 1, "conv2": 2}


def test_three_steps_by_hand() -> None:
    """Ratio 0.784 = 1 - 0.6^3 keeps 0.6, 0.36 and 0.216: of 50 channels 30, 18 and 10."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 50, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(50, 3)
    ).eval()
    recorder = Recorder()
    trial = Trial(method="adaptive", coverage_metric="mean_absolute", ratio=0.784, steps=3)
    result = Pruner(
        model,
        example(),
        trial,
        bounds=PruningSection(max_ratio=0.9, round_to=None),
        measured=Measurements(statistics=calibrate(model, batches()), remeasure=recorder),
    ).run()
    assert [seen["0"] for seen in recorder.seen] == [30, 18]
    assert widths(result.model)["0"] == 10


@pytest.mark.parametrize("method", ["coverage", "adaptive", "magnitude", "taylor", "random", "wanda"])
@pytest.mark.parametrize("net", NETS)
def test_a_plan_of_several_steps_is_in_dense_numbers(net: str, method: str) -> None:
    """Applied to the dense model at once it gives the model that the steps gave."""
    model = build(net)
    result = api.prune(model, example(), batches(), method=method, ratio=0.6, steps=3, round_to=None)
    again = api.apply_plan(model, result.plan)
    expected = result.model.state_dict()
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in expected.items()
    }
    assert all(torch.equal(value, expected[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize("method", ["coverage", "magnitude", "taylor"])
def test_taking_over_the_present_weights_between_steps_changes_nothing(method: str) -> None:
    """Nor does it lose the gradients that a later step reads."""
    model = build("residual")
    trial = Trial(method=method, coverage_metric="apoz" if method == "coverage" else None, ratio=0.6, steps=3)
    statistics = calibrate(model, batches(), gradients=True)
    measured = Measurements(statistics=statistics)
    expected = Pruner(model, example(), trial, measured=measured, bounds=ANY_WIDTH).run()
    pruner = Pruner(model, example(), trial, measured=measured, bounds=ANY_WIDTH)
    for step in (1, 2, 3):
        assert pruner.take_step(step)
        present = pruner.present()
        pruner.adopt(present.model)
    found = pruner.finish()
    assert found.plan == expected.plan
    assert found.layers == expected.layers == present.layers
    weights = expected.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in found.model.state_dict().items())


def test_weights_that_are_taken_over_decide_the_next_step() -> None:
    """Of the three channels of conv1 that are left two go: whichever was set to zero is among them."""
    model = build("plain")
    trial = Trial(method="magnitude", ratio=0.75, steps=2)
    for weakest in range(3):
        pruner = Pruner(model, example(), trial, bounds=ANY_WIDTH)
        pruner.take_step(1)
        first = pruner.present()
        with torch.no_grad():
            for name in ("conv1.weight", "bn1.weight", "bn1.bias", "conv1.bias"):
                first.model.get_parameter(name)[weakest] = 0
            first.model.conv2.weight[:, weakest] = 0
        pruner.adopt(first.model)
        pruner.take_step(2)
        assert first.kept_outputs["conv1"][weakest] not in pruner.finish().kept_outputs["conv1"]


def retrained(model: nn.Module, seed: int) -> nn.Module:
    """Other weights, and a bias for every convolution, as repair gives it."""
    generator = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(model)
    add_biases(model, [f"{name}.bias" for name, module in model.named_modules() if isinstance(module, nn.Conv2d)])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(3 * torch.randn(parameter.shape, generator=generator))
    return model


def assert_same(found: PruneResult, expected: PruneResult) -> None:
    assert found.plan == expected.plan
    assert found.layers == expected.layers
    weights = expected.model.state_dict()
    assert found.model.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in found.model.state_dict().items())


@pytest.mark.parametrize("method", ["magnitude", "coverage", "taylor", "hessian", "wanda", "random"])
@pytest.mark.parametrize("net", NETS)
def test_a_branch_goes_on_as_a_pruner_that_ran_alone(net: str, method: str) -> None:
    """Two branches after the first step take over different weights, and two more steps in turn."""
    model = build(net)
    trial = Trial(method=method, coverage_metric="apoz" if method == "coverage" else None, ratio=0.7, steps=3)
    measured = Measurements(statistics=calibrate(model, batches(), gradients=True, squared_gradients=True))

    def finish(pruner: Pruner, seed: int) -> PruneResult:
        pruner.adopt(retrained(pruner.present().model, seed))
        pruner.take_step(2)
        pruner.adopt(retrained(pruner.present().model, seed + 10))
        pruner.take_step(3)
        return pruner.finish()

    def started() -> Pruner:
        pruner = Pruner(model, example(), trial, measured=measured, bounds=ANY_WIDTH)
        pruner.take_step(1)
        return pruner

    alone = [finish(started(), seed) for seed in (0, 3)]
    if method == "magnitude":
        assert alone[0].plan.removed != alone[1].plan.removed, "the case does not tell one branch from the other"
    trunk = started()
    before = trunk.present()
    branch = trunk.branch()
    branched = finish(branch, 3)
    assert_same(trunk.present(), before)
    assert_same(finish(trunk, 0), alone[0])
    assert_same(branched, alone[1])


def test_a_branch_of_a_branch_keeps_the_weights_that_were_taken_over() -> None:
    model = build("residual")
    trunk = Pruner(model, example(), Trial(method="magnitude", ratio=0.7, steps=3), bounds=ANY_WIDTH)
    trunk.take_step(1)
    trunk.adopt(retrained(trunk.present().model, 3))
    first = trunk.branch()
    first.take_step(2)
    second = first.branch()
    assert_same(second.present(), first.present())
    trunk.take_step(2)
    assert_same(trunk.present(), first.present())
    for pruner in (trunk, first, second):
        pruner.take_step(3)
    assert_same(second.finish(), trunk.finish())


def test_a_branch_has_warnings_of_its_own() -> None:
    """Of 6 and 8 channels one each goes in the first of eight steps to ratio 0.1, and none in the next ones."""
    trunk = Pruner(build("plain"), example(), Trial(method="magnitude", ratio=0.1, steps=8), bounds=ANY_WIDTH)
    trunk.take_step(1)
    branch = trunk.branch()
    assert not branch.take_step(2)
    assert [len(pruner.present().plan.warnings) for pruner in (trunk, branch)] == [0, 1]


def test_a_step_that_removes_nothing_is_warned_of() -> None:
    """int(6 x 0.9^(1/8)) and int(8 x ...) take one channel in the first step, and some later ones take none."""
    plan = api.prune(build("plain"), example(), method="magnitude", ratio=0.1, steps=8, round_to=None).plan
    assert [len(item.removed) for item in plan.groups] == [1, 1]
    assert plan.warnings == tuple(f"step {step} of 8 removed nothing" for step in range(2, 9))


def test_statistics_follow_the_channels_from_step_to_step() -> None:
    """With coverage, whose scores stay, two steps remove in the end what one step removes."""
    model, data = build("flattened"), batches()
    one, two = (
        api.prune(
            model, example(), data, method="coverage", coverage_metric="apoz", ratio=0.5, steps=steps, round_to=None
        ).plan
        for steps in (1, 2)
    )
    assert one.removed == two.removed


def test_layer_ratios_follow_the_same_schedule() -> None:
    """conv1 keeps 0.64 of 6 channels in the end, and the root of that, 0.8, after the first of two steps: 4, then 3."""
    recorder = Recorder()
    model = build("plain")
    Pruner(
        model,
        example(),
        Trial(method="adaptive", coverage_metric="apoz", ratio=0.75, steps=2),
        bounds=PruningSection(layer_ratios={"conv1": 0.36}, round_to=None),
        measured=Measurements(statistics=calibrate(model, batches()), remeasure=recorder),
    ).run()
    assert recorder.seen == [{"conv1": 4, "conv2": 4}]
