"""A latency budget: predicted milliseconds are spent, the result is timed, and the prediction is corrected."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
_MOST_TIMED = 4
_SAME = 1e-3

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
    def removed(self) -> Mapping[str, int]:
        """The number of channels that each group has lost."""
        return {group.name: len(group.removed) for group in self.result.plan.groups}

    @property
    def predicted(self) -> float:
        """Its predicted time, likewise."""
        return float(self.result.plan.achieved["latency"]["predicted_ratio"])


def prune_to_budget(prune: Prune, trial: Trial, compare: Compare) -> PruneResult:
    """Prune as a trial says. If it limits latency, time the model and correct the prediction until the limit is met.

    1. `prune` removes what does least harm per predicted millisecond, until the predicted time is within the limit.
    2. The model is timed beside the dense one. If that is within 2 % of the limit, it is the result.
    3. Otherwise the dense model is pruned once more, to the predicted saving that would be the asked one if measured
       savings were to predicted ones as they were for the last model; between a model that is too slow and one that is
       too fast, the prediction is interpolated. That is repeated until a model is within 2 % of the limit, widths do
       not change any more, or four models were timed. The best one is the result: the slowest of those within the
       limit, else the fastest.

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
    tried, refused = [_timed(prune, trial, limit, compare)], [0.0]
    while len(tried) < _MOST_TIMED and len(refused) <= _MOST_TIMED:
        asked = _next_to_ask(tried, limit, max(refused))
        if asked is None:
            break
        try:
            found = _timed(prune, trial, asked, compare)
        except PruningError:  # The bounds do not allow as much.
            refused.append(asked)
            continue
        known = any(found.removed == one.removed for one in tried)
        tried.append(found)
        if known:
            break
    return _finished(trial, limit, min(tried, key=lambda found: _distance(found.ratio, limit)), len(tried))


def _timed(prune: Prune, trial: Trial, asked: float, compare: Compare) -> _Timed:
    result = prune(trial.model_copy(update={"budget": Budget(latency=asked)}))
    return _Timed(result=result, asked=asked, latency=compare(result.model))


def _next_to_ask(tried: Sequence[_Timed], limit: float, too_low: float) -> float | None:
    """Return the predicted time to ask for next; None if a model is near enough, or it would be asked for again.

    Where that is at most one that the bounds did not allow, it is halfway from there to the lowest that they did.
    """
    if any(abs(found.ratio - limit) <= _NEAR_ENOUGH * limit for found in tried):
        return None
    slow = min((found for found in tried if found.ratio > limit), key=lambda found: found.ratio, default=None)
    fast = max((found for found in tried if found.ratio < limit), key=lambda found: found.ratio, default=None)
    if slow is None or fast is None:
        asked = _corrected(tried[-1], limit)
    else:
        part = (limit - fast.ratio) / (slow.ratio - fast.ratio)
        asked = fast.asked + part * (slow.asked - fast.asked)
    if asked <= too_low:
        asked = (too_low + min(found.asked for found in tried)) / 2
    return None if any(abs(asked - found.asked) < _SAME for found in tried) else asked


def _corrected(last: _Timed, limit: float) -> float:
    """Return the predicted time to ask for, if measured savings go on to be to predicted ones as they were."""
    predicted, measured = 1.0 - last.predicted, 1.0 - last.ratio
    # Where hardly anything was saved, savings say nothing about each other; so the times themselves are compared.
    if measured > _NEAR_ENOUGH and predicted > _NEAR_ENOUGH:
        asked = 1.0 - predicted * (1.0 - limit) / measured
    else:
        asked = last.predicted * limit / last.ratio
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
