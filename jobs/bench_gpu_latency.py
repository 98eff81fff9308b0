"""The section of `bench_gpu.py` on latency budgets, in the target in which tensor cores compute: CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from bench_gpu_checks import Check, Setting
from torch import nn

import cleanai_ray as cleanai
from cleanai_ray.config.evaluation import LatencySection
from cleanai_ray.config.target import TargetSection
from cleanai_ray.evaluation.target_latency import time_in_target
from cleanai_ray.models import ignored_layers
from cleanai_ray.nn.complexity import measure_complexity

ASKED, OFF = 0.6, 0.05
"""The budget, as a share of the dense latency, and the share by which it, and the prediction, may be missed."""

LEAST_SPEEDUP = 1.4
"""Of a network at half the MACs, with the default widths."""


def budget(setting: Setting) -> Iterator[Check]:
    """Yield how near a latency budget and its prediction are to the clock, and the speed-up at half the MACs.

    Most of the time goes into the profile: ResNet-50 has some forty groups, each with up to six widths.
    """
    dense, target, asked = setting.network(), _target(setting), 0.9 if setting.small else ASKED
    example = torch.randn(1, *setting.section.input_shape, device=setting.device)
    given: dict[str, Any] = {
        "target": target.model_dump(),
        "round_to": "auto",
        "ignored_layers": _ignored(setting, dense),
    }
    profiles: list[Any] = []
    clock = _clock(setting, example, runs=10)
    took = setting.seconds(lambda: profiles.append(cleanai.latency_profile(dense, example, latency=clock, **given)))
    yield Check(f"{setting.section.name}: a latency profile in {target.label}", took, "s", most=180)
    yield Check("the noise of one of its timings", 100 * profiles[0].noise, "%")
    given["method"], clock = "magnitude", _clock(setting, example, runs=20)
    found = cleanai.prune(dense, example, budget={"latency": asked}, latency=clock, profile=profiles[0], **given)
    half = cleanai.prune(dense, example, budget={"macs": 0.8 if setting.small else 0.5}, **given).model
    times = _speedups({"dense": dense, "budget": found.model, "half": half}, example, target, setting)
    reached = 1.0 / times["budget"]
    predicted = float(found.plan.achieved["latency"]["predicted_ratio"])
    yield Check(f"latency {asked:g} was asked for: reached", reached, "")
    yield Check("by how much that misses what was asked for", 100 * abs(reached / asked - 1), "%", most=100 * OFF)
    yield Check("by how much it misses what was predicted", 100 * abs(reached / predicted - 1), "%", most=100 * OFF)
    yield Check("half the MACs, default widths: speed-up", times["half"], least=LEAST_SPEEDUP)


def _clock(setting: Setting, example: torch.Tensor, runs: int) -> Any:
    """Return how to time; for toy sizes, a function that counts MACs, since their times are all noise."""
    if not setting.small:
        return {"runs": runs, "warmup": 2}
    return lambda dense, pruned: measure_complexity(pruned, example).macs / measure_complexity(dense, example).macs


def _target(setting: Setting) -> TargetSection:
    if setting.device.type != "cuda":
        return TargetSection(backend="torch", batch_size=2, multiple=8)
    size = 2 if setting.small else 64
    return TargetSection(backend="cuda_graph", dtype="float16", layout="channels_last", batch_size=size)


def _ignored(setting: Setting, dense: nn.Module) -> list[str]:
    """Return the layers that keep their width; for toy sizes, all behind the first stage as well."""
    later = [name for name, _ in dense.named_modules() if name.startswith(("layer2.", "layer3."))]
    return [*ignored_layers(setting.section), *(later if setting.small else [])]


def _speedups(
    models: dict[str, nn.Module], example: torch.Tensor, target: TargetSection, setting: Setting
) -> dict[str, float]:
    """Return the speed-ups of models over the dense one, all timed in turns."""
    section = LatencySection(runs=5 if setting.small else 50, warmup=3)
    timings = time_in_target(models, example, target, section, device=setting.device, quick=True).timings
    return {name: timing.speedup for name, timing in timings.items() if timing.speedup is not None}
