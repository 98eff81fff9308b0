"""Profiles of invented machines, whose times are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.profile.fitted import LatencyProfile, Stairs, TimedModel, fit_stairs
from cleanai_ray.profile.widths import UNIFORM_SHARES, drawn, grid, step_of, uniform
from cleanai_ray.pruning.cost import CostModel
from cleanai_ray.pruning.granularity import Granularity
from tests.small_nets import Depthwise, Residual

EIGHTS, TWOS = Granularity(multiple=8), Granularity(multiple=2)


def chain() -> nn.Module:
    """Three convolutions in a row: two groups, of 64 and 32 channels, which meet in the second convolution."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 4, 1),
    )


def chain_time(widths: Mapping[str, int]) -> float:
    """A machine that computes 8 channels at once: 2 ms for whole eights of 64 and 3, 5 ms of 64 and 32, and so on."""
    first, second = (math.ceil(widths[name] / 8) for name in ("0", "2"))
    return 0.5 + 2 * first / 8 + 5 * (first / 8) * (second / 4) + 0.5 * second / 4


def profile_of(model: nn.Module, time: Callable[[Mapping[str, int]], float], points: int = 8) -> LatencyProfile:
    graph = ChannelGraph(model, torch.randn(1, 3, 8, 8))
    dense = {group.name: group.num_channels for group in graph.groups}
    base = time(dense)
    timed = [
        TimedModel(kind="group", widths={group.name: width}, ratio=time({**dense, group.name: width}) / base)
        for group in graph.groups
        for width in grid(group, EIGHTS, points)
    ]
    for share in UNIFORM_SHARES:
        widths = uniform(graph.groups, EIGHTS, share)
        timed.append(TimedModel(kind="uniform", widths=widths, ratio=time(widths) / base))
    steps = {group.name: step_of(group, EIGHTS) for group in graph.groups}
    return LatencyProfile(CostModel(graph), dense, steps, base, timed)


CHAIN = profile_of(chain(), chain_time)


def test_one_group_alone_takes_what_was_measured() -> None:
    profile = CHAIN
    assert profile.predict({}) == pytest.approx(8.0)
    stairs = profile.stairs["0"]
    for width in range(8, 65):
        assert stairs.at(width) * 8.0 == pytest.approx(chain_time({"0": width, "2": 32}))


def test_groups_that_meet_in_a_layer_do_not_save_twice() -> None:
    """Half of both: 0.5 + 1 + 5/4 + 0.25 = 3 ms; savings of each alone, added up, leave 1.75 ms."""
    profile = CHAIN
    assert chain_time({"0": 32, "2": 16}) == 3.0
    assert profile.predict({"0": 32, "2": 16}) == pytest.approx(3.0, rel=0.02)


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 64), st.integers(8, 32))
def test_any_widths_are_predicted_within_five_percent(first: int, second: int) -> None:
    widths = {"0": first, "2": second}
    assert CHAIN.predict_widths(widths) == pytest.approx(chain_time(widths), rel=0.05)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 56), st.integers(0, 24), st.integers(0, 8))
def test_removing_more_is_never_predicted_slower(first: int, second: int, more: int) -> None:
    fewer = CHAIN.predict({"0": first, "2": second})
    assert CHAIN.predict({"0": min(56, first + more), "2": second}) <= fewer + 1e-9
    assert CHAIN.predict({"0": first, "2": min(24, second + more)}) <= fewer + 1e-9


def test_a_machine_whose_savings_overlap_is_met_where_all_groups_were_narrowed() -> None:
    """A tenth of the saving is lost when several groups are narrow; no sum over groups alone can know of it."""

    def time(widths: Mapping[str, int]) -> float:
        saving = 8.0 - chain_time(widths)
        both = widths["0"] < 64 and widths["2"] < 32
        return 8.0 - saving * (0.9 if both else 1.0)

    profile = profile_of(chain(), time)
    for share in UNIFORM_SHARES:
        widths = {"0": int(64 * share), "2": int(32 * share)}
        assert profile.predict_widths(widths) == pytest.approx(time(widths), rel=0.01)


def test_a_width_that_was_measured_slower_than_a_wider_one_is_not_believed() -> None:
    """1.2 at 24 cannot be: with the 0.8 of 16 it makes no stair; 0.6 and 0.8 stay as they are."""
    stairs = fit_stairs({8: 0.6, 16: 0.8, 24: 1.2}, 32, 8)
    assert stairs.times.tolist() == [0.6, 0.8, 1.0, 1.0]
    pooled = fit_stairs({8: 0.9, 16: 0.7}, 24, 8)  # 0.9 before 0.7 is the mean of both
    assert pooled.times.tolist() == pytest.approx([0.8, 0.8, 1.0])


def test_stairs_are_kept_between_multiples_and_interpolated_between_timed_ones() -> None:
    stairs = Stairs(widths=np.array([8, 24, 32]), times=np.array([0.2, 0.6, 1.0]), step=8)
    assert [stairs.at(width) for width in (1, 8)] == pytest.approx([0.2, 0.2])
    assert [stairs.at(width) for width in (9, 16)] == pytest.approx([0.4, 0.4])  # 16 was not timed: halfway
    assert [stairs.at(width) for width in (17, 24, 25, 32)] == pytest.approx([0.6, 0.6, 1.0, 1.0])


def test_the_grid_has_multiples_of_the_step_alone_and_both_ends() -> None:
    graph = ChannelGraph(chain(), torch.randn(1, 3, 8, 8))
    first, second = (next(group for group in graph.groups if group.name == name) for name in "02")
    assert grid(first, EIGHTS, 99) == (8, 16, 24, 32, 40, 48, 56)
    assert grid(first, EIGHTS, 3) == (8, 32, 56)
    assert grid(second, Granularity(multiple=16), 5) == (16,)
    assert grid(second, Granularity(multiple=32), 2) == ()  # as wide as one step: it keeps its width
    assert grid(second, Granularity(multiple=32, least_steps=4), 9) == (8, 16, 24)


@pytest.mark.parametrize("model", [Residual(), Depthwise()], ids=["residual", "depthwise"])
def test_widths_of_whole_models_can_be_cut(model: nn.Module) -> None:
    graph = ChannelGraph(model, torch.randn(1, 2, 8, 8))
    for widths in (uniform(graph.groups, TWOS, 0.5), drawn(graph.groups, TWOS, 0)):
        assert list(widths) == [group.name for group in graph.groups]
        for group in graph.groups:
            assert 1 <= widths[group.name] <= group.num_channels
            assert widths[group.name] in (group.num_channels, *range(0, group.num_channels, step_of(group, TWOS)))
