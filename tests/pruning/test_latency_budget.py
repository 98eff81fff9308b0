"""A latency budget: time that is spent and timed, with a computed cost instead of a clock, and once with a real one."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

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


def chain() -> nn.Module:
    torch.manual_seed(0)
    sizes = (1, 64, 96, 128)
    layers = [
        layer for before, after in pairwise(sizes) for layer in (nn.Conv2d(before, after, 3, padding=1), nn.ReLU())
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)).eval()


COUNTED: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""MACs of the dense models that are alive, each of which is asked about with images of one size."""


def macs_ratio(dense: nn.Module, pruned: nn.Module, images: Tensor = IMAGES) -> float:
    if dense not in COUNTED:
        COUNTED[dense] = measure_complexity(dense, images).macs
    return measure_complexity(pruned, images).macs / COUNTED[dense]


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
def test_the_limit_is_met_by_spending_what_a_profile_predicts(
    mode: str, cost: Callable[..., float], limit: float
) -> None:
    dense = resnet()
    measure = Recorder(cost)
    result = api.prune(dense, IMAGES, method="magnitude", mode=mode, budget={"latency": limit}, latency=measure)
    found, latency = cost(dense, result.model), result.plan.achieved["latency"]
    assert limit * 0.95 <= found <= limit * 1.02
    assert latency["ratio"] == found
    assert latency["predicted_ratio"] == pytest.approx(found, rel=0.05)
    assert latency["num_models_timed"] <= 2  # once, and once more where the prediction was corrected
    assert not any("budget" in warning for warning in result.plan.warnings)
    assert result.plan.request["by_price"] is True


def test_a_profile_serves_several_budgets_and_no_model_is_timed_but_the_result() -> None:
    dense = chain()
    measure = Recorder(macs_ratio)
    profile = api.latency_profile(dense, IMAGES, latency=measure)
    for limit in (0.7, 0.5):
        measure.answers.clear()
        budget = {"latency": limit}
        result = api.prune(dense, IMAGES, method="magnitude", budget=budget, latency=measure, profile=profile)
        assert len(measure.answers) == result.plan.achieved["latency"]["num_models_timed"] <= 2
        assert limit * 0.95 <= macs_ratio(dense, result.model) <= limit * 1.02


def test_widths_are_multiples_of_what_was_asked_for_or_of_the_automatic_step() -> None:
    """Stages of 16, 32 and 64 channels have steps of 4, 8 and 8: four at least for each."""
    dense = resnet()
    for round_to, steps in (("auto", {16: 4, 32: 8, 64: 8}), (2, {16: 2, 32: 2, 64: 2})):
        options: dict[str, Any] = {"method": "magnitude", "latency": macs_ratio, "round_to": round_to}
        plan = api.prune(dense, IMAGES, budget={"latency": 0.6}, **options).plan
        widths = [(group.num_channels, group.num_channels - len(group.removed)) for group in plan.groups]
        assert all(kept % steps[width] == 0 for width, kept in widths)
        assert any(kept < width for width, kept in widths)


def test_the_plan_tells_of_the_budget_and_of_what_was_measured() -> None:
    dense = chain()
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
    assert latency["num_models_timed"] in (1, 2)
    assert 0 < latency["asked_ratio"] <= 0.7
    assert PruningPlan.from_json(result.plan.to_json()) == result.plan
    assert "measured latency" in result.plan.explain()


class Drifting:
    """A clock by which models of a profile save all that their MACs say, and finished models a share of it."""

    def __init__(self, share: float, num_profile: int) -> None:
        self.share, self.left = share, num_profile

    def __call__(self, dense: nn.Module, pruned: nn.Module) -> float:
        self.left -= 1
        return 1.0 - (1.0 - macs_ratio(dense, pruned)) * (1.0 if self.left >= 0 else self.share)


def number_of_profile_models(dense: nn.Module) -> int:
    measure = Recorder(macs_ratio)
    api.latency_profile(dense, IMAGES, latency=measure)
    return len(measure.answers)


@pytest.mark.parametrize("share", [0.8, 1.25])
def test_a_prediction_that_is_off_is_corrected(share: float) -> None:
    """Savings of 0.4 are asked for: where only four fifths of what is predicted are saved, 0.5 must be predicted."""
    dense = chain()
    clock = Drifting(share, number_of_profile_models(dense))
    result = api.prune(dense, IMAGES, method="magnitude", budget={"latency": 0.6}, latency=clock)
    latency = result.plan.achieved["latency"]
    assert 2 <= latency["num_models_timed"] <= 4
    assert latency["asked_ratio"] == pytest.approx(1.0 - 0.4 / share, abs=0.03)
    assert latency["ratio"] == pytest.approx(0.6, rel=0.05)
    assert not any("budget" in warning for warning in result.plan.warnings)
    assert result.plan.request["budget"]["latency"] == 0.6


class Kneed:
    """A clock by which finished models save hardly anything until a fifth of their MACs is gone."""

    def __init__(self, num_profile: int) -> None:
        self.left = num_profile
        self.answers: list[float] = []

    def __call__(self, dense: nn.Module, pruned: nn.Module) -> float:
        self.left -= 1
        saved = 1.0 - macs_ratio(dense, pruned)
        self.answers.append(1.0 - (saved if self.left >= 0 else max(0.05 * saved, 1.25 * (saved - 0.2))))
        return self.answers[-1]


def test_a_correction_that_goes_too_far_is_taken_back() -> None:
    """Savings of 0.4 are asked for. The first model saves 0.25, so 0.64 is asked for, which saves 0.55 and not 0.4."""
    dense = resnet()
    clock = Kneed(number_of_profile_models(dense))
    plan = api.prune(dense, IMAGES, method="magnitude", budget={"latency": 0.6}, latency=clock).plan
    latency, finished = plan.achieved["latency"], clock.answers[number_of_profile_models(dense) :]
    assert finished[0] > 0.6 * 1.05
    assert finished[1] < 0.6 * 0.95
    assert latency["num_models_timed"] == len(finished) in (3, 4)
    assert latency["ratio"] == pytest.approx(0.6, rel=0.05)


def test_a_correction_that_the_bounds_do_not_allow_goes_as_far_as_they_do() -> None:
    """Models save 0.3 of what is predicted: for 0.2, two thirds must go, and the first correction asks for more."""
    dense = chain()
    num_profile = number_of_profile_models(dense)

    def clock(dense: nn.Module, pruned: nn.Module) -> float:
        calls.append(1.0 - macs_ratio(dense, pruned))
        return 1.0 - calls[-1] * (1.0 if len(calls) <= num_profile else 0.3)

    calls: list[float] = []
    options: dict[str, Any] = {"method": "magnitude", "latency": clock, "max_ratio": 0.4}
    latency = api.prune(dense, IMAGES, budget={"latency": 0.8}, **options).plan.achieved["latency"]
    first, *others = calls[num_profile:]
    assert others
    assert 1.0 - latency["ratio"] == pytest.approx(0.3 * max(others))
    assert max(others) > first


def test_a_budget_that_stays_missed_says_by_how_much() -> None:
    """All that the bounds allow saves half of the work, and finished models save half of that: 0.75 instead of 0.55."""
    dense = chain()
    clock = Drifting(0.5, number_of_profile_models(dense))
    options: dict[str, Any] = {"method": "magnitude", "latency": clock, "max_ratio": 0.4}
    plan = api.prune(dense, IMAGES, budget={"latency": 0.55}, **options).plan
    (missed,) = [warning for warning in plan.warnings if "was missed" in warning]
    ratio = plan.achieved["latency"]["ratio"]
    assert f"the budget latency=0.55 was missed by {ratio / 0.55 - 1:.1%}" in missed
    assert f"takes {ratio:.3f} of the dense latency, more than allowed" in missed


def test_a_limit_below_the_smallest_model_is_refused_with_what_is_predicted() -> None:
    """Half of the time is fixed, and half of the channels are a fourth of the work at least: 0.6 is out of reach."""
    with pytest.raises(PruningError, match=r"the budget cannot be met: removing everything that max_ratio 0\.5.* ms"):
        api.prune(
            chain(),
            IMAGES,
            method="magnitude",
            mode="global",
            budget={"latency": 0.6},
            latency=half_fixed,
            max_ratio=0.5,
        )


def test_blocks_that_were_removed_count_towards_the_limit() -> None:
    dense = resnet()
    names = [api.measure_blocks(dense, IMAGES, [torch.randn(8, 1, 8, 8)])[0].name]
    options: dict[str, Any] = {"method": "magnitude", "latency": macs_ratio, "remove_blocks": names}
    result = api.prune(dense, IMAGES, [torch.randn(4, 1, 8, 8)], budget={"latency": 0.6}, **options)
    assert 0.57 <= macs_ratio(dense, result.model) <= 0.612
    assert len(result.plan.blocks) == 1


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
    assert macs_ratio(model, result.model, images) <= 0.6 * 1.05
    assert result.plan.request["steps"] == 2


def test_with_a_real_clock_the_plan_says_how_it_was_measured() -> None:
    """The times do not matter here: the smallest model has a hundredth of the work, and a limit of 1.0 leaves room."""
    layers = nn.Conv2d(1, 128, 3), nn.ReLU(), nn.Conv2d(128, 128, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    dense, images = nn.Sequential(*layers, nn.Linear(128, 10)).eval(), example(1, size=20, channels=1)
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    timing = {"budget_batch_size": 2, "runs": 5, "warmup": 1}
    plan = api.prune(dense, images, method="magnitude", budget={"latency": 0.9}, latency=timing).plan
    latency = plan.achieved["latency"]
    assert (latency["batch_size"], latency["num_warmup"]) == (2, 1)
    assert latency["num_runs"] >= 5  # and more until they have taken a second
    assert (latency["num_threads"], latency["device"]) == (1, "cpu, torch float32")
    assert latency["ratio"] == pytest.approx(latency["latency_ms_p50"] / latency["latency_ms_p50_dense"])
    assert 0 < latency["predicted_ratio"] < 1
    assert "batch 2, 1 thread, cpu, torch float32" in plan.explain()
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())


def test_a_target_names_what_times_the_model() -> None:
    layers = nn.Conv2d(1, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    dense, images = nn.Sequential(*layers, nn.Linear(64, 10)).eval(), example(1, size=20, channels=1)
    target = {"backend": "torch", "layout": "channels_last", "batch_size": 3, "multiple": 16}
    options: dict[str, Any] = {"method": "magnitude", "latency": {"runs": 5, "warmup": 1}, "target": target}
    plan = api.prune(dense, images, budget={"latency": 0.9}, round_to="auto", **options).plan
    assert plan.achieved["latency"]["device"] == "cpu, torch float32 channels_last"
    assert plan.achieved["latency"]["batch_size"] == 3
    assert plan.request["bounds"]["round_to"] == 16
    with pytest.raises(PruningError, match=r"backend is 'tpu'"):
        api.prune(dense, images, budget={"latency": 0.9}, method="magnitude", target={"backend": "tpu"})


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
