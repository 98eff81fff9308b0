"""Multiples of widths: asked for, usual, liked by a target, and scaled down for narrow groups."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cleanai_ray.config.sections import PruningSection
from cleanai_ray.pruning.granularity import Granularity, granularity_for_time, granularity_of


@pytest.mark.parametrize(
    ("num_channels", "num_blocks", "step"),
    [(256, 1, 32), (128, 1, 32), (64, 1, 16), (32, 1, 8), (16, 1, 4), (6, 1, 1), (3, 1, 1), (64, 3, 12), (768, 64, 64)],
)
def test_a_narrow_group_goes_by_a_part_of_the_multiple(num_channels: int, num_blocks: int, step: int) -> None:
    """Four steps of 16 in 64 channels; blocks of 3 take the least common multiple: 12 of 4 and 3, five times in 64."""
    assert Granularity(multiple=32, least_steps=4).step(num_channels, num_blocks) == step


@given(st.integers(1, 600), st.integers(1, 8), st.sampled_from([8, 16, 32, 64]))
def test_every_group_has_four_steps_as_far_as_it_has_the_channels(channels: int, blocks: int, multiple: int) -> None:
    step = Granularity(multiple=multiple, least_steps=4).step(channels, blocks)
    assert step % blocks == 0
    assert channels >= 4 * step or step == blocks  # single units are the least there is
    assert Granularity(multiple=multiple).step(channels, blocks) % multiple == 0  # a number that was asked for stays


def test_bounds_give_the_granularity() -> None:
    assert granularity_of(PruningSection(round_to=None)) is None
    assert granularity_of(PruningSection(round_to=24), "int8", 32) == Granularity(multiple=24)
    auto = PruningSection(round_to="auto")
    assert granularity_of(auto) == Granularity(multiple=8, least_steps=4)
    assert granularity_of(auto, "int8") == Granularity(multiple=16, least_steps=4)
    assert granularity_of(auto, "int8", 32) == Granularity(multiple=32, least_steps=4)
    assert granularity_of(auto, "none", 32) == Granularity(multiple=32, least_steps=4)


def test_time_is_spent_in_chunks_even_where_widths_are_any() -> None:
    any_width = PruningSection(round_to=None)
    assert granularity_for_time(any_width) == Granularity(multiple=8, least_steps=4)
    assert granularity_for_time(any_width, "none", 32) == Granularity(multiple=32, least_steps=4)
    assert granularity_for_time(PruningSection(round_to=4)) == Granularity(multiple=4)
