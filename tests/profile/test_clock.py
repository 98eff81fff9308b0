"""Clocks of latency budgets."""

from __future__ import annotations

import torch
from torch import nn

from cleanai_ray.config.evaluation import LatencySection
from cleanai_ray.config.target import TargetSection
from cleanai_ray.evaluation import target_latency
from cleanai_ray.evaluation.rounds import Timing
from cleanai_ray.evaluation.target_latency import TargetTimes
from cleanai_ray.profile import clock
from cleanai_ray.profile.clock import FunctionClock, TargetClock

NET = nn.Linear(2, 2)


def rounds_of(milliseconds: float, num_models: int, monkeypatch) -> tuple[int, int]:
    """The rounds and the warm-up of a comparison on a machine that takes so long for a pass."""
    asked: list[LatencySection] = []

    def time(models, example, target, section, **_) -> TargetTimes:
        asked.append(section)
        timing = Timing(p50=milliseconds, p90=milliseconds, p99=milliseconds, fast=milliseconds)
        return TargetTimes(timings=dict.fromkeys(models, timing), device=torch.device("cpu"))

    monkeypatch.setattr(clock, "time_in_target", time)
    section = LatencySection.model_validate({"runs": 50, "warmup": 10})
    names = ["dense", *map(str, range(num_models - 1))]
    TargetClock(TargetSection(backend="torch"), section, torch.zeros(1, 2)).time_models(dict.fromkeys(names, NET))
    assert len(asked) == 2  # the dense model alone first, to know how long a pass takes
    return asked[1].runs, asked[1].warmup


def test_a_comparison_takes_a_second_and_a_half_but_five_rounds_at_least(monkeypatch) -> None:
    assert rounds_of(1.0, 7, monkeypatch) == (50, 2)  # 1500 / 7 = 214 rounds would fit
    assert rounds_of(10.0, 6, monkeypatch) == (25, 2)
    assert rounds_of(200.0, 7, monkeypatch) == (5, 2)


def test_a_function_gives_ratios_with_the_dense_model_as_one() -> None:
    asked = []

    def latency(dense: nn.Module, pruned: nn.Module) -> float:
        asked.append((dense, pruned))
        return 0.25

    other = nn.Linear(2, 2)
    times = FunctionClock(latency).time_models({"dense": NET, "a": other})
    assert {name: timing.fast for name, timing in times.items()} == {"dense": 1.0, "a": 0.25}
    assert FunctionClock(latency).compare(NET, other) == {"ratio": 0.25}
    assert asked == [(NET, other)] * 2


def test_a_finished_model_is_timed_for_a_second_or_twenty_times_as_often_as_the_section_says(monkeypatch) -> None:
    rounds = []
    turns = target_latency.take_turns
    monkeypatch.setattr(
        target_latency, "take_turns", lambda timers, **often: rounds.append(often) or turns(timers, **often)
    )
    section = LatencySection.model_validate({"runs": 6, "warmup": 3})
    found = TargetClock(TargetSection(backend="torch", batch_size=2), section, torch.zeros(1, 2)).compare(NET, NET)
    assert rounds == [{"warmup": 3, "runs": 6, "least_ms": 1000.0}]
    assert (found["batch_size"], found["num_runs"]) == (2, 120)
