"""Noise of timings: a planted machine with stairs comes back exactly without it, and is met better with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.profile.fitted import LatencyProfile, TimedModel
from cleanai_ray.profile.shrinkage import Savings, noise_of, shrunk
from cleanai_ray.profile.widths import UNIFORM_SHARES, grid, step_of, uniform
from cleanai_ray.pruning.cost import CostModel
from cleanai_ray.pruning.granularity import Granularity
from cleanai_ray.pruning.time_selection import spend_time

EIGHTS = Granularity(multiple=8)
WIDTH, TILE, LIMIT = 64, 16, 0.6


def narrow_chain(num_groups: int) -> ChannelGraph:
    sizes = (3, *[WIDTH] * num_groups, 4)
    layers = [layer for before, after in pairwise(sizes) for layer in (nn.Conv2d(before, after, 1), nn.ReLU())]
    return ChannelGraph(nn.Sequential(*layers), torch.randn(1, 3, 2, 2))


GRAPH = narrow_chain(10)
COST = CostModel(GRAPH)
NAMES = [group.name for group in GRAPH.groups]
CHANNELS = {group.name: group.num_channels for group in GRAPH.groups}
STEPS = {group.name: step_of(group, EIGHTS) for group in GRAPH.groups}


class Machine:
    """Computes whole tiles of 16 channels, each layer at a pace of its own, and moves what it computed as slowly."""

    def __init__(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.compute = generator.lognormal(0.0, 0.7, len(NAMES) + 1)
        self.move = generator.lognormal(-1.0, 0.7, len(NAMES) + 1)

    def time(self, widths: Mapping[str, int]) -> float:
        """Return the share of the dense time; a group that is not named has its dense width."""
        tiles = [math.ceil(widths.get(name, WIDTH) / TILE) * TILE / WIDTH for name in NAMES]
        edges = zip(self.compute, self.move, pairwise([1.0, *tiles, 1.0]), strict=True)
        spent = sum(compute * before * after + move * after for compute, move, (before, after) in edges)
        return float(spent / (self.compute.sum() + self.move.sum()))

    def timed(self, noise: float, seed: int) -> list[TimedModel]:
        """Return what measuring a profile finds, with noise on every single timing."""
        generator = np.random.default_rng(seed)

        def clock(widths: Mapping[str, int]) -> float:
            return self.time(widths) * math.exp(noise * generator.standard_normal())

        found: list[TimedModel] = []
        for group in GRAPH.groups:
            first, second = clock({}), clock({})
            for width in grid(group, EIGHTS, 7):
                widths = {group.name: width}
                found.append(TimedModel(kind="group", widths=widths, ratio=2 * clock(widths) / (first + second)))
            found.append(TimedModel(kind="repeat", widths={group.name: WIDTH}, ratio=second / first))
        base = (clock({}) + clock({})) / 2
        for share in UNIFORM_SHARES:
            widths = uniform(GRAPH.groups, EIGHTS, share)
            found.append(TimedModel(kind="uniform", widths=widths, ratio=clock(widths) / base))
        return found


def fitted(timed: Sequence[TimedModel]) -> LatencyProfile:
    return LatencyProfile(COST, CHANNELS, STEPS, 1.0, timed)


def chosen(profile: LatencyProfile, seed: int) -> dict[str, int]:
    """Return the channels that each group loses for a latency budget, where the harm they do is drawn."""
    generator = np.random.default_rng(seed)
    harms = {name: np.concatenate([[0.0], np.cumsum(np.sort(generator.exponential(size=WIDTH)))]) for name in NAMES}
    levels = dict.fromkeys(NAMES, range(0, WIDTH, 8))
    return spend_time(levels, harms, profile.predict, LIMIT, {})


def test_the_noise_is_that_of_one_timing_of_two() -> None:
    """The logarithms are 0.02, -0.02 and 0: their mean square is 0.0008 / 3, twice the variance of one timing."""
    assert noise_of([math.exp(0.02), math.exp(-0.02), 1.0]) == pytest.approx(math.sqrt(0.0004 / 3))
    assert noise_of([1.0, 1.0]) == noise_of([]) == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_without_noise_planted_stairs_come_back_exactly(seed: int) -> None:
    machine = Machine(seed)
    profile = fitted(machine.timed(0.0, seed))
    assert profile.noise == 0
    for name in NAMES:
        for width in range(8, WIDTH + 1):
            assert profile.stairs[name].at(width) == pytest.approx(machine.time({name: width}), abs=1e-12)


def test_with_noise_the_model_that_a_budget_chooses_is_predicted_nearer_to_the_truth() -> None:
    """Twelve machines, each measured anew, at a noise that is a third of what most groups save."""
    misses: dict[str, list[float]] = {"as measured": [], "less noise": []}
    for seed in range(12):
        machine = Machine(seed)
        timed = machine.timed(0.03, 100 + seed)
        raw = [found for found in timed if found.kind != "repeat"]
        for label, models in (("as measured", raw), ("less noise", timed)):
            profile = fitted(models)
            removed = chosen(profile, seed)
            truth = machine.time({name: WIDTH - count for name, count in removed.items()})
            misses[label].append(profile.predict(removed) / truth - 1.0)
    before, after = (np.array(misses[label]) for label in ("as measured", "less noise"))
    assert np.abs(after).mean() < 0.7 * np.abs(before).mean()
    assert abs(after.mean()) < abs(before.mean())  # the winner's curse: times of chosen models are too short


def savings(*saved: float, work: float = 0.1) -> Savings:
    lost = np.arange(1, len(saved) + 1) / len(saved)
    return Savings(lost=lost, saved=np.array(saved), work=work)


def test_without_noise_savings_are_as_measured() -> None:
    groups = {"a": savings(0.3, 0.1, 0.2), "b": savings(-0.1, 0.0, 0.1), "c": savings()}
    found = shrunk(groups, 0.0)
    assert all(found[name].tolist() == group.saved.tolist() for name, group in groups.items())


def test_groups_alike_are_drawn_together_the_more_the_noisier() -> None:
    """Eight groups that save the same are measured with an error in turns above and below it."""
    truth = np.array([0.05, 0.1, 0.15, 0.2])
    signs = np.array([[1, -1, 1, -1], [-1, 1, -1, 1]] * 4)
    groups = {str(place): savings(*(truth + 0.02 * sign)) for place, sign in enumerate(signs)}
    errors = [
        max(float(np.abs(found - truth).max()) for found in shrunk(groups, noise).values())
        for noise in (1e-6, 0.005, 0.02)
    ]
    assert errors[0] == pytest.approx(0.02, rel=0.01)
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.01


def test_a_stair_far_above_the_noise_is_kept() -> None:
    groups = {str(place): savings(0.02, 0.04, 0.06, 0.08) for place in range(6)}
    groups["stairs"] = savings(0.0, 0.0, 0.3, 0.3)
    found = shrunk(groups, 0.005)["stairs"]
    assert found == pytest.approx(np.array([0.0, 0.0, 0.3, 0.3]), abs=0.01)


def test_a_group_without_channels_to_lose_or_without_work_is_no_fault() -> None:
    groups = {"none": savings(), "idle": savings(0.01, 0.02, work=0.0), "busy": savings(0.1, 0.2)}
    found = shrunk(groups, 0.01)
    assert found["none"].tolist() == []
    assert np.isfinite(np.concatenate(list(found.values()))).all()
