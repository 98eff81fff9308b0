"""A latency budget: the search, with a computed cost instead of a clock, and once with a real clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_nets import batches, build, example
from torch import Tensor, nn

from cleanai_ray import api
from cleanai_ray.errors import PruningError
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.pruning.plan import PruningPlan
from cleanai_ray.registry import MODELS

IMAGES = example(1, size=8, channels=1)


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return MODELS.get("resnet20")().build(num_classes=10, input_shape=(1, 8, 8)).eval()


def macs_ratio(dense: nn.Module, pruned: nn.Module, images: Tensor = IMAGES) -> float:
    return measure_complexity(pruned, images).macs / measure_complexity(dense, images).macs


def half_fixed(dense: nn.Module, pruned: nn.Module) -> float:
    """A device on which half of the time does not depend on the work."""
    return 0.5 + 0.5 * macs_ratio(dense, pruned)


class Recorder:
    """Answers as a measurement does, and keeps what it was asked and what it answered."""

    def __init__(self, cost: Callable[[nn.Module, nn.Module], float]) -> None:
        self.cost = cost
        self.macs: list[float] = []
        self.answers: list[float] = []

    def __call__(self, dense: nn.Module, pruned: nn.Module) -> float:
        self.macs.append(macs_ratio(dense, pruned))
        self.answers.append(self.cost(dense, pruned))
        return self.answers[-1]


@pytest.mark.parametrize(("cost", "limit"), [(macs_ratio, 0.6), (macs_ratio, 0.25), (half_fixed, 0.7)])
@pytest.mark.parametrize("mode", ["local", "global"])
def test_the_largest_model_within_the_limit_is_found(mode: str, cost: Callable[..., float], limit: float) -> None:
    dense = resnet()
    measure = Recorder(cost)
    result = api.prune(dense, IMAGES, method="magnitude", mode=mode, budget={"latency": limit}, latency=measure)
    found = cost(dense, result.model)
    assert limit - 0.02 <= found <= limit
    assert found == max(answer for answer in measure.answers if answer <= limit)
    assert not any("budget" in warning for warning in result.plan.warnings)
    assert len(set(measure.macs)) <= 8  # the smallest model and seven candidates
    # Each candidate is what the same settings prune from the dense model at some budget of MACs.
    asked = result.plan.achieved["latency"]["macs_asked"]
    again = api.prune(dense, IMAGES, method="magnitude", mode=mode, budget={"macs": asked})
    assert again.plan.removed == result.plan.removed


def test_the_plan_tells_of_the_budget_and_of_what_was_measured() -> None:
    dense = resnet()
    measure = Recorder(macs_ratio)
    result = api.prune(
        dense, IMAGES, method="magnitude", budget={"latency": 0.6}, latency=measure, seed=3, max_ratio=0.8
    )
    request, latency = result.plan.request, result.plan.achieved["latency"]
    assert request["budget"]["latency"] == 0.6
    assert request["budget"]["macs"] is None
    assert (request["ratio"], request["mode"], request["seed"], request["bounds"]["max_ratio"]) == (
        None,
        "local",
        3,
        0.8,
    )
    assert latency["ratio"] == macs_ratio(dense, result.model)
    assert latency["num_models_timed"] == len(set(measure.macs))
    assert PruningPlan.from_json(result.plan.to_json()) == result.plan
    assert "measured latency" in result.plan.explain()


def test_a_model_within_the_limit_is_timed_again_and_the_slower_time_counts() -> None:
    """A clock that is wrong by half every first time that it sees a model: no model gets in by luck."""
    dense = resnet()
    seen: list[float] = []

    def lucky_first(dense: nn.Module, pruned: nn.Module) -> float:
        ratio = macs_ratio(dense, pruned)
        seen.append(ratio)
        return ratio / 2 if seen.count(ratio) == 1 else ratio

    result = api.prune(dense, IMAGES, method="magnitude", budget={"latency": 0.5}, latency=lucky_first)
    assert 0.48 <= macs_ratio(dense, result.model) <= 0.5
    assert result.plan.achieved["latency"]["ratio"] == macs_ratio(dense, result.model)


def test_a_limit_below_the_smallest_model_is_refused_with_what_was_measured() -> None:
    dense = resnet()
    smallest = api.prune(dense, IMAGES, method="magnitude", ratio=0.5, max_ratio=0.5).model
    ratio = half_fixed(dense, smallest)
    with pytest.raises(PruningError) as caught:
        api.prune(
            dense,
            IMAGES,
            method="magnitude",
            mode="global",
            budget={"latency": 0.6},
            latency=half_fixed,
            max_ratio=0.5,
        )
    message = str(caught.value)
    assert "the budget latency=0.6 cannot be met: the smallest model that max_ratio 0.5" in message
    assert f"takes {ratio:.3f} of the dense latency" in message


def test_a_device_that_is_fast_only_at_the_smallest_gets_that_one_and_a_warning() -> None:
    dense = resnet()
    bounds: dict[str, Any] = {"max_ratio": 0.5, "method": "magnitude"}
    smallest = api.prune(dense, IMAGES, ratio=0.5, **bounds)
    floor = macs_ratio(dense, smallest.model)

    def cliff(dense: nn.Module, pruned: nn.Module) -> float:
        return 0.3 if macs_ratio(dense, pruned) <= floor else 0.9

    result = api.prune(dense, IMAGES, mode="global", budget={"latency": 0.5}, latency=cliff, **bounds)
    assert {name: len(gone) for name, gone in result.plan.removed.items()} == {
        name: len(gone) for name, gone in smallest.plan.removed.items()
    }
    narrowest, missed = result.plan.warnings[-2:]
    assert "leaves every layer as narrow as max_ratio 0.5, min_channels 1 and layer_ratios allow" in narrowest
    assert "the budget latency=0.5 was missed: the pruned model takes 0.300 of the dense latency" in missed
    assert "the next larger one tried takes 0.900" in missed


def test_widths_are_rounded_and_coarse_steps_are_said() -> None:
    """Two layers of 6 and 8 channels: few models exist, and the best of them may lie well below the limit."""
    model, images = build("plain"), example(1)
    options: dict[str, Any] = {"method": "magnitude", "round_to": 2}

    def cost(dense: nn.Module, pruned: nn.Module) -> float:
        return macs_ratio(dense, pruned, images)

    for percent in range(25, 100, 15):
        result = api.prune(model, images, budget={"latency": percent / 100}, latency=cost, **options)
        assert all((group.num_channels - len(group.removed)) % 2 == 0 for group in result.plan.groups)
        found = cost(model, result.model)
        assert found <= percent / 100
        warned = any(f"the budget latency={percent / 100:g} was missed" in text for text in result.plan.warnings)
        assert warned == (found < percent / 100 - 0.02)


def test_several_steps_and_a_calibrated_method() -> None:
    model, images = build("residual"), example(1)
    result = api.prune(
        model,
        images,
        batches(),
        method="adaptive",
        steps=2,
        budget={"latency": 0.6},
        latency=lambda dense, pruned: macs_ratio(dense, pruned, images),
    )
    assert macs_ratio(model, result.model, images) <= 0.6
    assert result.plan.request["steps"] == 2


def test_with_a_real_clock_the_plan_says_how_it_was_measured() -> None:
    """The times do not matter here: the smallest model has a hundredth of the work, and a limit of 1.0 leaves room."""
    layers = nn.Conv2d(1, 128, 3), nn.ReLU(), nn.Conv2d(128, 128, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    dense, images = nn.Sequential(*layers, nn.Linear(128, 10)).eval(), example(1, size=20, channels=1)
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    timing = {"budget_batch_size": 2, "runs": 5, "warmup": 1}
    plan = api.prune(dense, images, method="magnitude", budget={"latency": 1.0}, latency=timing).plan
    latency = plan.achieved["latency"]
    assert (latency["batch_size"], latency["num_runs"], latency["num_warmup"]) == (2, 5, 1)
    assert (latency["num_threads"], latency["device"]) == (1, "cpu")
    assert 0 < latency["ratio"] <= 1.0
    assert latency["latency_ms_p50"] > 0
    assert latency["latency_ms_p50_dense"] > 0
    assert "batch 2, 1 thread, cpu" in plan.explain()
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())


@pytest.mark.parametrize(
    ("latency", "words"),
    [
        ({"budget_batch_size": 0}, r"budget_batch_size is 0; allowed: an integer of at least 1"),
        ({"batch_size": 8}, r"unknown key 'batch_size'"),
    ],
)
def test_wrong_timing_is_one_sentence(latency: dict[str, Any], words: str) -> None:
    with pytest.raises(PruningError, match=words):
        api.prune(resnet(), IMAGES, method="magnitude", budget={"latency": 0.9}, latency=latency)
