"""A budget that is shared out over blocks and widths together: `prune(remove_blocks="auto")`."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from small_nets import batches, example
from torch import nn

import cleanai_ray as cleanai
from cleanai_ray.config.sections import PruningSection
from cleanai_ray.config.study import Trial
from cleanai_ray.config.sweep import Budget
from cleanai_ray.deploy.onnx import open_session, to_onnx
from cleanai_ray.errors import PruningError
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.pruning.plan import PruningPlan
from cleanai_ray.pruning.pruning_job import PruningJob
from cleanai_ray.sensitivity.block_choice import choose_for_budget
from cleanai_ray.sensitivity.block_judge import BlockJudge, split_batches
from cleanai_ray.sensitivity.blocks import CHEAP_REPAIR
from cleanai_ray.tasks.base import find_task
from tests.small_blocks import blocks_in_a_row

IMAGES = batches(sizes=(10, 10))
EXAMPLE = example(1)
WORK = 2 * 9 * 8 * 64
"""Multiply-accumulates of a block on 8 x 8 pixels, for each of its inner channels."""


def planted() -> Any:
    """The second of three blocks computes nothing."""
    return blocks_in_a_row([(24, 1.0), (16, 0.0), (8, 2.0)])


def macs_ratio(dense: nn.Module, pruned: nn.Module) -> float:
    return measure_complexity(pruned, EXAMPLE).macs / measure_complexity(dense, EXAMPLE).macs


@pytest.mark.parametrize("resource", ["macs", "latency"])
@torch.no_grad()
def test_a_block_that_computes_nothing_is_taken_first_and_costs_nothing(resource: str) -> None:
    model = planted()
    limit = 1 - 16 * WORK / measure_complexity(model, EXAMPLE).macs + 1e-6
    options: dict[str, Any] = {"method": "magnitude", "repair": "sequential", "round_to": None, "check": False}
    timing = {"latency": macs_ratio} if resource == "latency" else {}
    result = cleanai.prune(model, EXAMPLE, IMAGES, budget={resource: limit}, remove_blocks="auto", **options, **timing)
    assert [block.name for block in result.plan.blocks] == ["2"]
    assert result.plan.removed == {}
    found = result.plan.achieved["blocks"]
    assert found["error"] == pytest.approx(0.0, abs=1e-6)
    assert found["error_without"] > 1e-4
    images = torch.cat([images for images, _ in IMAGES])
    torch.testing.assert_close(result.model.eval()(images), model(images), rtol=1e-3, atol=1e-3)
    assert macs_ratio(model, result.model) <= limit


def judged(budget: Budget) -> tuple[tuple[Any, ...], BlockJudge]:
    # Of much work and little effect, of little work and much effect, and of something in between.
    model = blocks_in_a_row([(24, 0.1), (8, 4.0), (16, 0.5)])
    trial = Trial(method="magnitude", mode="global", budget=budget)
    job = PruningJob(
        model=model,
        example_inputs=EXAMPLE,
        trial=trial,
        bounds=PruningSection(round_to=None, check=False),
        task=find_task("classification"),
    )
    errors = cleanai.measure_blocks(model, EXAMPLE, IMAGES, repair=CHEAP_REPAIR)
    return errors, BlockJudge(job, IMAGES, repair=CHEAP_REPAIR)


@pytest.mark.parametrize("budget", [Budget(macs=0.75), Budget(macs=0.4), Budget(params=0.5)])
def test_the_choice_is_that_of_trying_every_set_of_blocks(budget: Budget) -> None:
    errors, judge = judged(budget)
    names = [error.name for error in errors]
    assert names == ["1", "2", "3"]
    every = {some: judge(some) for number in range(len(names) + 1) for some in combinations(names, number)}
    choice = choose_for_budget(errors, budget.resource, judge)
    assert choice.names == min(every, key=lambda some: every[some])
    assert choice.names
    assert choice.error_without == pytest.approx(every[()])


def test_the_plan_tells_the_choice_and_is_saved_and_exported(tmp_path: Path) -> None:
    model = planted()
    result = cleanai.prune(
        model, EXAMPLE, IMAGES, method="reconstruction", budget={"macs": 0.5}, remove_blocks="auto", round_to=None
    )
    assert "2" in [block.name for block in result.plan.blocks]
    assert result.plan.removed
    assert 0.45 <= macs_ratio(model, result.model) <= 0.5
    why = result.plan.achieved["blocks"]["why"]
    assert f"Blocks: {why}" in " ".join(result.plan.explain().split())
    assert PruningPlan.from_json(result.plan.to_json()).achieved["blocks"] == result.plan.achieved["blocks"]
    cleanai.save(result, tmp_path)
    loaded = cleanai.load(tmp_path, planted).eval()
    images = torch.cat([images for images, _ in IMAGES])
    with torch.no_grad():
        expected = result.model.eval()(images)
        assert torch.equal(loaded(images), expected)
    pytest.importorskip("onnxruntime")
    found = open_session(to_onnx(result.model, images), threads=1)(images)
    torch.testing.assert_close(torch.as_tensor(found), expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_where_no_block_pays_the_plan_says_why() -> None:
    """Half of the channels between two plain layers compute nothing, so that narrowing costs nothing."""
    wide = nn.Conv2d(8, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 8, 3, padding=1)
    model = blocks_in_a_row([(8, 2.0)], wide)
    wide[0].weight[::2], wide[0].bias[::2], wide[2].weight[:, ::2] = 0.0, 0.0, 0.0
    options: dict[str, Any] = {"method": "magnitude", "mode": "global", "budget": {"macs": 0.8}, "round_to": None}
    result = cleanai.prune(model, EXAMPLE, IMAGES, remove_blocks="auto", **options)
    assert result.plan.blocks == ()
    assert list(result.plan.removed) == ["2"]
    found = result.plan.achieved["blocks"]
    assert found["error"] == found["error_without"] == pytest.approx(0.0, abs=1e-9)
    assert found["why"].startswith("no block pays: 1, the cheapest for what it saves, alone takes the outputs ")
    assert "Blocks: no block pays: " in result.plan.explain()


def test_a_method_that_reads_gradients_has_the_labels_of_what_is_not_held_back() -> None:
    working, held = split_batches(IMAGES)
    labels = torch.cat([targets for _, targets in IMAGES])
    places = [place for place in range(20) if place % 5 != 4]
    assert torch.equal(torch.cat([targets for _, targets in working]), labels[places])
    assert torch.equal(torch.cat(held), torch.cat([images for images, _ in IMAGES])[4::5])
    listed = [(images, list(range(len(images)))) for images, _ in IMAGES]
    assert split_batches(listed)[0][0][1] == [0, 1, 2, 3, 5, 6, 7, 8]
    few, own = split_batches([IMAGES[0][0][:3]])
    assert torch.equal(few[0], own[0])
    result = cleanai.prune(
        planted(), EXAMPLE, IMAGES, method="taylor", budget={"params": 0.8}, remove_blocks="auto", check=False
    )
    assert result.plan.achieved["params"] <= 0.8 * result.plan.achieved["params_dense"]


def test_a_budget_that_cannot_be_met_is_refused_as_without_blocks() -> None:
    with pytest.raises(PruningError, match="the budget cannot be met"):
        cleanai.prune(
            planted(), EXAMPLE, IMAGES, method="magnitude", budget={"macs": 0.02}, remove_blocks="auto", max_ratio=0.1
        )


def test_the_profile_of_the_dense_model_serves_with_blocks() -> None:
    model = planted()
    options: dict[str, Any] = {"latency": macs_ratio, "round_to": None, "check": False}
    profile = cleanai.latency_profile(model, EXAMPLE, **options)
    options |= {"method": "magnitude", "mode": "global", "budget": {"latency": 0.5}, "profile": profile}
    result = cleanai.prune(model, EXAMPLE, IMAGES, remove_blocks=["3"], **options)
    reached = macs_ratio(model, result.model)
    assert reached <= 0.51
    assert result.plan.removed
    assert result.plan.achieved["latency"]["predicted_ratio"] == pytest.approx(reached, abs=0.03)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            {"ratio": 0.3},
            r"remove_blocks is 'auto', and budget is None; needed: the limit that blocks and layers share",
        ),
        (
            {"budget": {"macs": 0.5}, "batches": None},
            r"remove_blocks is 'auto', and batches is None; needed: the images",
        ),
        ({"budget": {"macs": 0.5}, "stats": "some"}, r"remove_blocks is 'auto', and stats are given"),
        ({"budget": {"macs": 0.5}, "remove_blocks": "layer1.0"}, r"remove_blocks is 'layer1.0'; allowed: 'auto', or"),
    ],
)
def test_what_it_takes_is_asked_for(more: dict[str, Any], words: str) -> None:
    arguments = {"batches": IMAGES, "remove_blocks": "auto", "method": "magnitude", **more}
    with pytest.raises(PruningError, match=words):
        cleanai.prune(planted(), EXAMPLE, **arguments)
