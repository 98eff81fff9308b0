"""A latency budget: predicted milliseconds are spent, the result is timed, and the prediction is corrected once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from cleanai_ray.config.study import Trial
from cleanai_ray.config.sweep import Budget
from cleanai_ray.errors import PruningError
from cleanai_ray.pruning.prune_result import PruneResult

LATENCY_TOLERANCE = 0.05
"""A model whose time is further than this share from a limit misses it."""

_NEAR_ENOUGH = 0.02
_LEAST_LIMIT = 0.01

Prune = Callable[[Trial], PruneResult]
"""Prunes the dense model as a trial says, by predicted time."""

Compare = Callable[[nn.Module], Mapping[str, Any]]
"""Times a pruned model beside the dense one, and returns the `ratio` of their latencies and how it was measured."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Timed:
    """A model that was timed.

    Attributes:
        result: The pruned model and its plan.
        asked: The predicted time that it was pruned to, as a fraction of the dense model's.
        latency: The measurement.
    """

    result: PruneResult
    asked: float
    latency: Mapping[str, Any]

    @property
    def ratio(self) -> float:
        """Its time, as a fraction of the dense model's."""
        return float(self.latency["ratio"])

    @property
    def predicted(self) -> float:
        """Its predicted time, likewise."""
        return float(self.result.plan.achieved["latency"]["predicted_ratio"])


def prune_to_budget(prune: Prune, trial: Trial, compare: Compare) -> PruneResult:
    """Prune as a trial says. If it limits latency, time the model and correct the prediction once.

    1. `prune` removes what does least harm per predicted millisecond, until the predicted time is within the limit.
    2. The model is timed beside the dense one. If that is within 2 % of the limit, it is the result.
    3. Otherwise the dense model is pruned once more, to the predicted saving that would be the asked one if measured
       savings were to predicted ones as they were for the first model. It is timed, too, and the better model is the
       result: the slower one if both are within the limit, else the faster one.

    Args:
        prune: Prunes the dense model as a trial says.
        trial: The method, the budget and the other settings.
        compare: Times a pruned model beside the dense one, for instance by `compare_in_target`.

    Returns:
        The chosen model. Its plan has the trial as its request, and in `achieved["latency"]` the prediction and the
        measurement. If it misses the limit by more than 5 %, a warning says by how much.

    Raises:
        PruningError: When even the smallest model that the bounds allow is predicted to be too slow, or when `prune`
            raises it.
    """
    if trial.budget is None or trial.budget.latency is None:
        return prune(trial)
    limit = trial.budget.latency
    tried = [_timed(prune, trial, limit, compare)]
    corrected = _corrected(tried[0], limit)
    if corrected is not None:
        with suppress(PruningError):  # The bounds may not allow as much.
            tried.append(_timed(prune, trial, corrected, compare))
    return _finished(trial, limit, min(tried, key=lambda found: _distance(found.ratio, limit)), len(tried))


def _timed(prune: Prune, trial: Trial, asked: float, compare: Compare) -> _Timed:
    result = prune(trial.model_copy(update={"budget": Budget(latency=asked)}))
    return _Timed(result=result, asked=asked, latency=compare(result.model))


def _corrected(first: _Timed, limit: float) -> float | None:
    """Return the predicted time to ask for instead; None if the first model is near enough."""
    if abs(first.ratio - limit) <= _NEAR_ENOUGH * limit:
        return None
    predicted, measured = 1.0 - first.predicted, 1.0 - first.ratio
    # Where hardly anything was saved, savings say nothing about each other; so the times themselves are compared.
    if measured > _NEAR_ENOUGH and predicted > _NEAR_ENOUGH:
        asked = 1.0 - predicted * (1.0 - limit) / measured
    else:
        asked = first.predicted * limit / first.ratio
    return min(max(asked, _LEAST_LIMIT), 1.0)


def _distance(ratio: float, limit: float) -> tuple[bool, float]:
    """Return what orders models: those within the limit first, then those near it."""
    return ratio > limit * (1.0 + _NEAR_ENOUGH), abs(ratio - limit)


def _finished(trial: Trial, limit: float, chosen: _Timed, num_timed: int) -> PruneResult:
    plan = chosen.result.plan
    latency = {**plan.achieved["latency"], **chosen.latency, "asked_ratio": chosen.asked, "num_models_timed": num_timed}
    request = {**plan.request, **trial.request}
    missed = [] if abs(chosen.ratio - limit) <= LATENCY_TOLERANCE * limit else [_missed(chosen, limit)]
    achieved = {**plan.achieved, "latency": latency}
    told = replace(plan, request=request, achieved=achieved, warnings=(*plan.warnings, *missed))
    return replace(chosen.result, plan=told)


def _missed(chosen: _Timed, limit: float) -> str:
    off = chosen.ratio / limit - 1.0
    return (
        f"the budget latency={limit:g} was missed by {abs(off):.1%}: the pruned model takes {chosen.ratio:.3f} of the "
        f"dense latency{_conditions(chosen.latency)}, {'more' if off > 0 else 'less'} than allowed; predicted were "
        f"{chosen.predicted:.3f}"
    )


def _conditions(latency: Mapping[str, Any]) -> str:
    """Return in brackets how a latency was measured, or nothing if that is unknown."""
    if "latency_ms_p50" not in latency:
        return ""
    threads = f"{latency['num_threads']} thread{'' if latency['num_threads'] == 1 else 's'}"
    return (
        f" ({latency['latency_ms_p50']:.2f} ms of {latency['latency_ms_p50_dense']:.2f} ms, batch "
        f"{latency['batch_size']}, {threads}, {latency['device']})"
    )
