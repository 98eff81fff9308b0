"""Clocks for latency budgets: they time narrowed models for a profile, and a finished one beside the dense one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.config.evaluation import LatencySection
from cleanai_ray.config.target import TargetSection
from cleanai_ray.evaluation.rounds import DENSE, Timing
from cleanai_ray.evaluation.target_latency import compare_in_target, time_in_target

_MILLISECONDS_A_COMPARISON = 1500.0
_LEAST_RUNS = 5
_MOST_WARMUP = 2

CompareModels = Callable[[nn.Module, nn.Module], float]
"""Returns the ratio of a pruned model's latency to the dense model's."""


class Clock(ABC):
    """Times models that are pruned versions of one dense model."""

    @abstractmethod
    def time_models(self, models: Mapping[str, nn.Module]) -> Mapping[str, Timing]:
        """Return the times of models by name, one of them `dense`, in milliseconds."""

    @abstractmethod
    def compare(self, dense: nn.Module, pruned: nn.Module) -> dict[str, Any]:
        """Return the `ratio` of a finished model's time to the dense model's, and how it was measured."""


class TargetClock(Clock):
    """Times models in a target, in turns.

    A profile compares many models, so each comparison takes about a second and a half: as many rounds as fit, at least
    5 and at most those of the section. A finished model is timed as often as the section says. Where one thread of a
    CPU computes, its own time is counted, so that other processes do not count.

    Args:
        target: The target.
        section: How often.
        example_input: Images [N, ...], repeated or cut to the target's batch size.
        device: The study's device.
    """

    def __init__(
        self, target: TargetSection, section: LatencySection, example_input: Tensor, device: torch.device | str = "cpu"
    ) -> None:
        self._target = target
        self._section = section
        self._example = example_input
        self._device = device
        self._dense_ms: float | None = None

    def time_models(self, models: Mapping[str, nn.Module]) -> Mapping[str, Timing]:
        """Return the times of models by name."""
        if self._dense_ms is None:
            few = {"runs": _LEAST_RUNS, "warmup": min(self._section.warmup, _MOST_WARMUP)}
            self._dense_ms = self._time({DENSE: models[DENSE]}, **few)[DENSE].fast
        fitting = int(_MILLISECONDS_A_COMPARISON / (len(models) * max(self._dense_ms, 1e-3)))
        runs = min(max(fitting, _LEAST_RUNS), self._section.runs)
        return self._time(models, runs=runs, warmup=min(self._section.warmup, _MOST_WARMUP))

    def _time(self, models: Mapping[str, nn.Module], **often: int) -> Mapping[str, Timing]:
        section = self._section.model_copy(update=often)
        return time_in_target(models, self._example, self._target, section, device=self._device, quick=True).timings

    def compare(self, dense: nn.Module, pruned: nn.Module) -> dict[str, Any]:
        """Return the ratio of a finished model's time to the dense model's, and how it was measured."""
        return compare_in_target(dense, pruned, self._example, self._target, self._section, device=self._device)


class FunctionClock(Clock):
    """Times models by a function that returns the ratio of a pruned model's latency to the dense model's.

    The dense model counts as one millisecond.

    Args:
        latency: The function.
    """

    def __init__(self, latency: CompareModels) -> None:
        self._latency = latency

    def time_models(self, models: Mapping[str, nn.Module]) -> Mapping[str, Timing]:
        """Return the ratios of models by name."""
        ratios = {name: float(self._latency(models[DENSE], model)) for name, model in models.items() if name != DENSE}
        return {
            name: Timing(p50=ratio, p90=ratio, p99=ratio, fast=ratio) for name, ratio in {DENSE: 1.0, **ratios}.items()
        }

    def compare(self, dense: nn.Module, pruned: nn.Module) -> dict[str, Any]:
        """Return the ratio of a finished model's time to the dense model's."""
        return {"ratio": float(self._latency(dense, pruned))}
