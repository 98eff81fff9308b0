"""The time of whole blocks, and a profile that is carried over to a model without some of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cleanai_ray.graph.blocks import find_blocks
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.profile.blocks import profile_without_blocks, time_blocks
from cleanai_ray.profile.clock import FunctionClock
from cleanai_ray.profile.fitted import LatencyProfile
from cleanai_ray.profile.predicted import profile_model
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
