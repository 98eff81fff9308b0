"""The multiple that a target likes, on invented machines and for real."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from torch import nn

from cleanai_ray.config.target import TargetSection
from cleanai_ray.evaluation.rounds import Timing
from cleanai_ray.profile import multiple
from cleanai_ray.profile.clock import Clock
from cleanai_ray.profile.multiple import MULTIPLES, measure_multiple, multiple_in


class Tiles(Clock):
    """A machine that computes whole tiles of channels, and takes as long for a part of one."""

    def __init__(self, tile: int, overhead: float = 0.0) -> None:
        self.tile, self.overhead = tile, overhead

    def time_models(self, models: Mapping[str, nn.Module]) -> dict[str, Timing]:
        times = {name: self.overhead + self.milliseconds(model) for name, model in models.items()}
        return {name: Timing(p50=time, p90=time, p99=time, fast=time) for name, time in times.items()}

    def milliseconds(self, model: nn.Module) -> float:
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
        return sum(
            math.ceil(layer.in_channels / self.tile) * math.ceil(layer.out_channels / self.tile) * self.tile**2 / 1e4
            for layer in layers
        )

    def compare(self, dense: nn.Module, pruned: nn.Module) -> dict[str, Any]:
        raise NotImplementedError


@pytest.mark.parametrize("tile", MULTIPLES)
def test_the_multiple_is_the_tile_of_the_machine(tile: int) -> None:
    """Widths that are narrower by less than a tile take as long; by a tile, they save what the work says."""
    assert measure_multiple(Tiles(tile)) == tile
    assert measure_multiple(Tiles(tile, overhead=1.0)) == tile


def test_a_machine_without_tiles_takes_the_least_multiple_and_one_that_saves_nothing_the_most() -> None:
    assert measure_multiple(Tiles(1)) == 8
    assert measure_multiple(Tiles(1024)) == 64


def test_a_target_that_names_its_multiple_is_not_measured_and_another_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def measure(clock: Clock) -> int:
        asked.append(clock)
        return 32

    monkeypatch.setattr(multiple, "measure_multiple", measure)
    multiple._measured.cache_clear()
    assert multiple_in(TargetSection(backend="torch", multiple=24), "cpu") == 24
    assert asked == []
    plain = TargetSection(backend="torch", batch_size=7)
    assert [multiple_in(plain, "cpu"), multiple_in(plain, "cpu")] == [32, 32]
    assert len(asked) == 1
    multiple._measured.cache_clear()


def test_a_target_that_cannot_be_timed_here_has_the_usual_multiple() -> None:
    assert multiple_in(TargetSection(backend="cuda_graph", batch_size=3), "cpu") == 8


def test_a_real_target_likes_one_of_the_multiples() -> None:
    assert multiple_in(TargetSection(backend="torch"), "cpu") in MULTIPLES
