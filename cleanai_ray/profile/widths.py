"""The widths at which a latency profile is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cleanai_ray.graph.group import ChannelGroup
from cleanai_ray.pruning.granularity import Granularity

UNIFORM_SHARES = (0.75, 0.5, 0.25)
"""Shares of every group's channels that models are timed with to see how the groups' savings add up."""

NUM_CHECKS = 2
"""Models of random widths that the prediction is judged by."""


def step_of(group: ChannelGroup, granularity: Granularity) -> int:
    """Return the channels between widths of a group, a whole number of units of all its blocks."""
    return granularity.step(group.num_channels, group.num_blocks)


def grid(group: ChannelGroup, granularity: Granularity, points: int) -> tuple[int, ...]:
    """Return the widths at which a group is timed, ascending, without its dense width.

    They are multiples of the group's step, spread evenly from the least to the most, which both belong to them.

    Args:
        group: The group.
        granularity: The granularity of the target.
        points: At most this many widths, 2 or more.
    """
    step = step_of(group, granularity)
    every = np.arange(step, group.num_channels, step)
    if len(every) > points:
        every = every[np.unique(np.linspace(0, len(every) - 1, points).round().astype(int))]
    return tuple(int(width) for width in every)


def uniform(groups: Sequence[ChannelGroup], granularity: Granularity, share: float) -> dict[str, int]:
    """Return a width for every group: the multiple of its step nearest to a share of its channels, at least one."""
    return {group.name: _near(group, granularity, share) for group in groups}


def drawn(groups: Sequence[ChannelGroup], granularity: Granularity, seed: int) -> dict[str, int]:
    """Return a width for every group, from shares that are drawn evenly between 0.3 and 1."""
    shares = np.random.default_rng(seed).uniform(0.3, 1.0, len(groups))
    return {group.name: _near(group, granularity, share) for group, share in zip(groups, shares, strict=True)}


def _near(group: ChannelGroup, granularity: Granularity, share: float) -> int:
    step = step_of(group, granularity)
    width = max(1, math.floor(share * group.num_channels / step + 0.5)) * step
    return min(width, group.num_channels)
