"""A latency budget: a search over models that are really pruned, and timed beside the dense one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from cleanai_ray.config.sections import PruningSection
from cleanai_ray.config.study import Trial
from cleanai_ray.config.sweep import Budget
from cleanai_ray.errors import PruningError
from cleanai_ray.pruning.cost import BUDGET_TOLERANCE
from cleanai_ray.pruning.prune_result import PruneResult

_NUM_CANDIDATES = 7
_NEAR_ENOUGH = BUDGET_TOLERANCE / 4

Prune = Callable[[Trial], PruneResult]
"""Prunes the dense model as a trial says."""

Compare = Callable[[nn.Module], Mapping[str, Any]]
"""Times a pruned model beside the dense one, and returns the `ratio` of their latencies and how it was measured."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Candidate:
    """A model that the search tried.

    Attributes:
        result: The pruned model and its plan.
        latency: The measurement.
        asked: Share of the dense MACs that it was pruned to; None for the smallest model that the bounds allow.
    """

    result: PruneResult
    latency: Mapping[str, Any]
    asked: float | None

    @property
    def ratio(self) -> float:
        """Its latency, as a fraction of the dense model's."""
        return float(self.latency["ratio"])

    @property
    def share(self) -> float:
        """Its MACs, as a fraction of the dense model's."""
        achieved = self.result.plan.achieved
        return float(achieved["macs"] / achieved["macs_dense"])


def prune_to_budget(prune: Prune, trial: Trial, bounds: PruningSection, compare: Compare) -> PruneResult:
    """Prune as a trial says. If it limits latency, return the largest model that was measured within the limit.

    Latency has no formula: it depends on the device, and falls in steps. So the share of MACs is bisected, at most
    seven times, between the smallest model that the bounds allow and the dense one. Each candidate is pruned from the
    dense model with the trial's own settings and timed beside it. A candidate that seems to be within the limit is
    timed again, and the slower time counts, so that no lucky measurement decides. The search ends early once a
    candidate is within half a percentage point of the limit. If the trial's method searches for an allocation, it does
    so once, for the share of MACs that was found; the result is kept if it is within the limit.

    Args:
        prune: Prunes the dense model as a trial says.
        trial: The method, the budget and the other settings.
        bounds: The bounds that `prune` keeps to.
        compare: Times a pruned model beside the dense one, for instance by `evaluation.latency.compare_latency`.

    Returns:
        The chosen model. Its plan has the trial as its request, and the measurement in `achieved["latency"]`.

    Raises:
        PruningError: When even the smallest model that the bounds allow is too slow, or when `prune` raises it.
    """
    if trial.budget is None or trial.budget.resource != "latency":
        return prune(trial)
    return _Search(prune, trial, bounds, compare).run()


class _Search:
    """The search for the largest model within a latency limit. It holds at most two models at a time."""

    def __init__(self, prune: Prune, trial: Trial, bounds: PruningSection, compare: Compare) -> None:
        assert trial.budget is not None
        self._prune = prune
        self._trial = trial
        self._searches = bool(trial.options.get("search"))
        self._bounds = bounds
        self._compare = compare
        self._limit = trial.budget.limit
        self._num_timed = 0
        self._too_slow: float | None = None

    def run(self) -> PruneResult:
        """Return the largest model within the limit."""
        best = self._smallest()
        low, high = best.share, 1.0
        for _ in range(_NUM_CANDIDATES):
            if best.ratio >= self._limit - _NEAR_ENOUGH:
                break
            asked = (low + high) / 2
            result = self._pruned(budget=Budget(macs=asked))
            if result.plan.removed == best.result.plan.removed:
                low = asked
                continue
            candidate = self._timed(result, asked)
            if candidate.ratio <= self._limit:
                best, low = candidate, asked
            else:
                # Every budget between the model's own share and the one asked for gives this same model.
                high, self._too_slow = min(asked, candidate.share), candidate.ratio
        return self._finished(self._searched(best) if self._searches and best.asked is not None else best)

    def _pruned(self, **changes: Any) -> PruneResult:
        """Prune without a search for the allocation, which takes too long for a model that may be dropped."""
        options = {**self._trial.options, "search": 0} if self._searches else self._trial.options
        return self._prune(self._trial.model_copy(update={**changes, "options": options}))

    def _searched(self, best: _Candidate) -> _Candidate:
        """Return the model of the searched allocation with the same MACs, or `best` if that is too slow."""
        trial = self._trial.model_copy(update={"budget": Budget(macs=best.asked)})
        candidate = self._timed(self._prune(trial), best.asked)
        return candidate if candidate.ratio <= self._limit else best

    def _smallest(self) -> _Candidate:
        """Return the smallest model that the bounds allow, where all modes remove the same number of channels."""
        candidate = self._timed(self._pruned(budget=None, ratio=self._bounds.max_ratio, mode="local"), None)
        if candidate.ratio > self._limit:
            raise PruningError(
                f"the budget {self._trial.budget} cannot be met: the smallest model that max_ratio "
                f"{self._bounds.max_ratio}, min_channels {self._bounds.min_channels}, ignored_layers and layer_ratios "
                f"allow takes {candidate.ratio:.3f} of the dense latency{_conditions(candidate.latency)}"
            )
        return candidate

    def _timed(self, result: PruneResult, asked: float | None) -> _Candidate:
        self._num_timed += 1
        latency = self._compare(result.model)
        if float(latency["ratio"]) <= self._limit:
            latency = max(latency, self._compare(result.model), key=lambda measured: float(measured["ratio"]))
        return _Candidate(result=result, latency=latency, asked=asked)

    def _finished(self, best: _Candidate) -> PruneResult:
        """Return the chosen model. Its plan describes the latency search, not the MACs budget that the search used."""
        plan = best.result.plan
        inner = "the budget macs="
        return replace(
            best.result,
            plan=replace(
                plan,
                request={**plan.request, **self._trial.model_dump(mode="json", exclude={"quantization"})},
                achieved={
                    **plan.achieved,
                    "latency": {**best.latency, "macs_asked": best.asked, "num_models_timed": self._num_timed},
                },
                warnings=(*(text for text in plan.warnings if not text.startswith(inner)), *self._warnings(best)),
            ),
        )

    def _warnings(self, best: _Candidate) -> list[str]:
        narrowest = (
            f"the budget {self._trial.budget} leaves every layer as narrow as max_ratio {self._bounds.max_ratio}, "
            f"min_channels {self._bounds.min_channels} and layer_ratios allow"
        )
        found = [narrowest] if best.asked is None else []
        if best.ratio >= self._limit - BUDGET_TOLERANCE:
            return found
        larger = "" if self._too_slow is None else f"; the next larger one tried takes {self._too_slow:.3f}"
        return [
            *found,
            f"the budget {self._trial.budget} was missed: the pruned model takes {best.ratio:.3f} of the dense "
            f"latency{_conditions(best.latency)}{larger}",
        ]


def _conditions(latency: Mapping[str, Any]) -> str:
    """Return in brackets how a latency was measured, or nothing if that is unknown."""
    if "latency_ms_p50" not in latency:
        return ""
    threads = f"{latency['num_threads']} thread{'' if latency['num_threads'] == 1 else 's'}"
    return (
        f" ({latency['latency_ms_p50']:.2f} ms of {latency['latency_ms_p50_dense']:.2f} ms, batch "
        f"{latency['batch_size']}, {threads}, {latency['device']})"
    )
