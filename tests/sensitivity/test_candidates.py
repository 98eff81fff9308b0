"""Candidates of a search are judged by what pruning and closed-form repair really make of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_nets import NETS, batches, build, example
from torch import nn

import cleanai_ray as cleanai
from cleanai_ray.errors import PruningError
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.importance.curves import SensitivityCurves
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.pruning.saved_model import apply_plan
from cleanai_ray.repair import RepairOptions, repair
from cleanai_ray.repair.outputs import divergence, log_probabilities
from cleanai_ray.sensitivity import score_candidates

IMAGES = [batch for batch, _ in batches(sizes=(40, 40))]


def searched(net: str, number: int, **options) -> tuple[nn.Module, SensitivityCurves, object]:
    model = build(net)
    curves = cleanai.measure_sensitivity(model, example(), IMAGES)
    found = cleanai.prune(
        model,
        example(),
        IMAGES,
        method="reconstruction",
        curves=curves,
        method_options={"search": number},
        **{"budget": {"macs": 0.5}, **options},
    )
    return model, curves, found


def removed_units(model: nn.Module, removed: dict[str, tuple[int, ...]]) -> dict[str, int]:
    blocks = {group.name: group.num_blocks for group in ChannelGraph(model, example()).groups}
    return {name: len(channels) // blocks[name] for name, channels in removed.items()}


@pytest.mark.parametrize("net", list(NETS))
def test_a_score_is_the_divergence_after_pruning_and_closed_form(net: str) -> None:
    model, curves, result = searched(net, 0)
    # Without images held back, repair by `closed_form` alone reads all images: so it gets those that a scorer works on.
    working = torch.cat(IMAGES)[np.arange(80) % 5 != 4]
    held = torch.cat(IMAGES)[np.arange(80) % 5 == 4]
    scorer = score_candidates(model, example(), IMAGES, curves)
    options = RepairOptions(compensation="closed_form", batch_norm="relative", ridge=1e-3)
    fixed = repair(model, result, list(working.split(40)), options).model
    counts = removed_units(model, result.plan.removed)
    for name, images in (("held_back", held), ("all", working), ("some", working[:16])):
        expected = divergence(log_probabilities(model, [images]), log_probabilities(fixed, [images]))
        assert scorer.score(counts, name) == pytest.approx(expected, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("net", ["residual", "concat", "depthwise"])
@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"params": 0.6}, {"size_mb": 0.9}])
def test_a_searched_plan_meets_the_budget_and_is_no_worse_than_the_greedy_one(net: str, budget: dict) -> None:
    dense = measure_complexity(build(net), example())
    if "size_mb" in budget:
        budget = {"size_mb": budget["size_mb"] * dense.size_bytes / 1e6}
    model, curves, result = searched(net, 24, budget=budget)
    _, _, greedy = searched(net, 0, budget=budget)
    found = result.plan.achieved["search"]
    scorer = score_candidates(model, example(), IMAGES, curves)
    assert scorer.score(removed_units(model, greedy.plan.removed), "held_back") == pytest.approx(
        found["kl_start"], rel=1e-6
    )
    assert scorer.score(removed_units(model, result.plan.removed), "held_back") == pytest.approx(found["kl"], rel=1e-6)
    assert found["kl"] <= found["kl_start"]
    assert 0 < found["candidates"] <= 24
    cost = measure_complexity(result.model, example())
    assert cost.macs <= budget.get("macs", 1) * dense.macs
    assert cost.params <= budget.get("params", 1) * dense.params
    assert cost.size_bytes <= budget.get("size_mb", 1.0) * 1e6
    # The plan alone gives the same model.
    assert torch.equal(apply_plan(model, result.plan)(IMAGES[0]), result.model(IMAGES[0]))


def test_a_search_keeps_to_the_bounds() -> None:
    model, _, result = searched(
        "residual", 40, round_to=2, min_channels=4, layer_ratios={"head": 0.2}, budget={"macs": 0.6}
    )
    widths = {group.name: group.num_channels - len(group.removed) for group in result.plan.groups}
    dense = {group.name: group.num_channels for group in ChannelGraph(model, example()).groups}
    assert widths["head"] == dense["head"] - 1  # a fifth of five channels
    assert all(width >= 4 for width in widths.values())
    assert all(width % 2 == 0 or width == dense[name] for name, width in widths.items() if name != "head")


def test_a_latency_budget_is_shared_out_by_a_search_as_well() -> None:
    def macs(dense: nn.Module, small: nn.Module) -> float:
        return measure_complexity(small, example()).macs / measure_complexity(dense, example()).macs

    _, _, result = searched("residual", 16, budget={"latency": 0.5}, latency=macs)
    assert result.plan.request["options"] == {"search": 16}
    assert macs(build("residual"), result.model) <= 0.5 * 1.05
    assert result.plan.achieved["latency"]["num_models_timed"] <= 2
    assert result.plan.achieved["search"]["kl"] <= result.plan.achieved["search"]["kl_start"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": None, "ratio": 0.3}, ["search 8", "ratio 0.3", "allowed: a budget and steps 1, or search 0"]),
        ({"steps": 2}, ["search 8", "steps 2", "allowed: a budget and steps 1, or search 0"]),
    ],
)
def test_a_search_without_a_budget_to_share_out_is_refused(options: dict, words: list[str]) -> None:
    with pytest.raises(PruningError) as caught:
        searched("plain", 8, **options)
    assert all(word in str(caught.value) for word in words)


def test_a_search_without_images_is_refused() -> None:
    model = build("plain")
    curves = cleanai.measure_sensitivity(model, example(), IMAGES)
    options = {"method": "reconstruction", "budget": {"macs": 0.5}, "method_options": {"search": 8}}
    with pytest.raises(PruningError, match="search 8, which reads calibration images, and none were given"):
        cleanai.prune(model, example(), curves=curves, **options)


@pytest.mark.parametrize("value", [-1, 1.5, True, "many"])
def test_the_number_of_candidates_is_checked(value: object) -> None:
    with pytest.raises(cleanai.errors.CleanAIError, match=r"search is .*; allowed: a whole number, at least 0"):
        cleanai.prune(build("plain"), example(), method="reconstruction", ratio=0.3, method_options={"search": value})
