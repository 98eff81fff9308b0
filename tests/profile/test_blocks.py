"""The time of whole blocks, and a profile that is carried over to a model without some of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cleanai_ray.evaluation.rounds import DENSE, Timing
from cleanai_ray.graph.blocks import find_blocks
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.profile.blocks import profile_without_blocks, time_blocks
from cleanai_ray.profile.clock import FunctionClock
from cleanai_ray.profile.fitted import LatencyProfile, TimedModel
from cleanai_ray.profile.predicted import profile_model
from cleanai_ray.profile.table import fit_profile
from cleanai_ray.pruning.block_removal import describe_blocks, without_blocks
from cleanai_ray.pruning.granularity import Granularity
from cleanai_ray.pruning.plan import BlockPlan
from tests.small_blocks import blocks_in_a_row

EXAMPLE = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
FOURS = Granularity(multiple=4)


def macs_ratio(dense: nn.Module, pruned: nn.Module) -> float:
    return measure_complexity(pruned, EXAMPLE).macs / measure_complexity(dense, EXAMPLE).macs


CLOCK = FunctionClock(macs_ratio)


@pytest.fixture(scope="module")
def dense() -> Any:
    return blocks_in_a_row([(16, 1.0), (24, 1.0), (8, 1.0)])


@pytest.fixture(scope="module")
def profile(dense: nn.Module) -> LatencyProfile:
    return profile_model(dense, EXAMPLE, CLOCK, granularity=FOURS, check=False)


@pytest.fixture(scope="module")
def plans(dense: nn.Module) -> tuple[BlockPlan, ...]:
    return describe_blocks(dense, EXAMPLE, [EXAMPLE], find_blocks(dense, EXAMPLE))


def test_a_block_saves_the_time_of_its_branch(dense: nn.Module, plans: tuple[BlockPlan, ...]) -> None:
    """More blocks than are timed at once; on this machine the time is the work: 18 x 64 for each inner channel of 8."""
    saved = time_blocks(dense, [*plans, *plans, *plans], CLOCK.time_models)
    whole = measure_complexity(dense, EXAMPLE).macs
    assert saved == {
        name: pytest.approx(8 * inner * 18 * 64 / whole) for name, inner in (("1", 16), ("2", 24), ("3", 8))
    }


def test_a_block_that_costs_time_to_leave_out_saves_none(dense: nn.Module, plans: tuple[BlockPlan, ...]) -> None:
    slower = FunctionClock(lambda before, after: 1.1)
    assert time_blocks(dense, plans[:1], slower.time_models) == {plans[0].name: 0.0}


@pytest.mark.parametrize("names", [["2"], ["1", "3"]])
def test_the_profile_without_blocks_is_the_one_that_would_be_measured(
    dense: nn.Module, plans: tuple[BlockPlan, ...], profile: LatencyProfile, names: list[str]
) -> None:
    """Beside a profile that is measured on the model without the blocks, at widths that were timed in neither."""
    bare = without_blocks(dense, [plan for plan in plans if plan.name in names])
    left = macs_ratio(dense, bare)
    whole = ChannelGraph(bare, EXAMPLE, check=False)
    measured = profile_model(bare, EXAMPLE, CLOCK, granularity=FOURS, check=False)
    carried = profile_without_blocks(profile, whole, FOURS, 1.0 - left)
    assert carried.dense_ms == pytest.approx(left)
    assert set(carried.stairs) == set(measured.stairs)
    generator = np.random.default_rng(0)
    for _ in range(3):
        removed = {group.name: 4 * int(generator.integers(0, group.num_channels // 4)) for group in whole.groups}
        assert carried.predict(removed) == pytest.approx(left * measured.predict(removed), abs=0.04)
        # And the truth: the model is really narrowed.
        graph = ChannelGraph(bare, EXAMPLE, check=False)
        graph.remove({name: range(count) for name, count in removed.items() if count})
        assert carried.predict(removed) == pytest.approx(macs_ratio(dense, graph.model), abs=0.06)


def noisy(dense: nn.Module, profile: LatencyProfile, repeats: tuple[float, ...]) -> LatencyProfile:
    """The profile with repeats of these ratios, beside groups that were timed."""
    exact = [model for model in profile.timed if model.kind != "repeat"]
    more = [TimedModel(kind="repeat", widths={"1.one": 16}, ratio=ratio) for ratio in repeats]
    return fit_profile(ChannelGraph(dense, EXAMPLE, check=False), FOURS, profile.dense_ms, [*exact, *more])


def test_noise_of_a_saving_grows_as_less_time_is_left(dense: nn.Module, profile: LatencyProfile) -> None:
    """Of half the time, a saving is twice the share, and so is what it is off by: ln 1.02 / sqrt 2, twice."""
    found = noisy(dense, profile, (1.02, 1 / 1.02))
    carried = profile_without_blocks(found, ChannelGraph(dense, EXAMPLE, check=False), FOURS, 0.5)
    assert found.noise == pytest.approx(math.log(1.02) / math.sqrt(2))
    assert carried.noise == pytest.approx(2 * found.noise)


@pytest.mark.parametrize("saved", [0.9, 0.99, 1.5])
@pytest.mark.parametrize("repeats", [(0.98, 0.9, 1.05), ()])
def test_a_profile_of_almost_no_time_left_stays_positive(
    dense: nn.Module, profile: LatencyProfile, saved: float, repeats: tuple[float, ...]
) -> None:
    """Savings of the dense model are larger than what the blocks leave of its time."""
    graph = ChannelGraph(dense, EXAMPLE, check=False)
    carried = profile_without_blocks(noisy(dense, profile, repeats), graph, FOURS, saved)
    assert math.isfinite(carried.noise)
    assert all(0 < model.ratio < math.inf for model in carried.timed)
    for share in (0.0, 0.5, 0.9):
        removed = {group.name: int(share * group.num_channels) for group in graph.groups}
        assert 0 <= carried.predict(removed) <= carried.dense_ms
    assert carried.dense_ms == pytest.approx(profile.dense_ms * max(1 - saved, 0.01))


def test_blocks_are_timed_beside_the_dense_model_with_its_attention_opened_likewise() -> None:
    """On a machine where each module of attention is slow, a block would seem to save what opening it does."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = blocks_in_a_row([(16, 1.0)])
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = self.blocks(x)[:, None]
            return (tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0])[:, 0]

    model = Mixed().eval()
    (found,) = [block for block in find_blocks(model, EXAMPLE) if block.name == "blocks.1"]
    plans = describe_blocks(model, EXAMPLE, [EXAMPLE], [found])
    timed: dict[str, bool] = {}

    def time_models(models: Mapping[str, nn.Module]) -> dict[str, Timing]:
        timed.update(
            {
                name: any(isinstance(module, nn.MultiheadAttention) for module in each.modules())
                for name, each in models.items()
            }
        )
        return {name: Timing(p50=1.0, p90=1.0, p99=1.0, fast=1.0) for name in models}

    assert time_blocks(model, plans, time_models) == {"blocks.1": 0.0}
    assert timed == {DENSE: False, "blocks.1": False}
