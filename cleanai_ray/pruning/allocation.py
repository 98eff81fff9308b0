"""A search for how to share a budget out over groups, which judges whole candidates.

As EvoPress (Sieberling et al. 2024, arXiv:2410.14649): one parent, a few offspring that each move budget between
groups, and a selection in two rounds, of which the first reads few images. Here it begins at the greedy allocation, and
its result must prove itself on images that it was not chosen on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from cleanai_ray.config.digests import digest

NUM_OFFSPRING = 8
NUM_SURVIVORS = 2
_SLACK = 1e-9
_MOST_SWITCHES = 3
_LARGEST_MOVE = 0.12
"""Most that one move takes from a group or gives to it, as a share of its levels."""
_ATTEMPTS = 20
"""Moves that are tried for each offspring before a generation stays smaller."""

Counts = Mapping[str, int]
Images = Literal["some", "all", "held_back"]
"""The images that candidates are scored on: some or all of those to search with, or others."""

Evaluate = Callable[[Sequence[Counts], Images], Sequence[float]]
"""Returns the score of each candidate, low = good."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AllocationProblem:
    """A budget to share out.

    Attributes:
        start: Units that each group loses in the allocation to begin with, which meets the limit.
        levels: Numbers of units that a group may lose, ascending, the one of `start` among them; groups that are not in
            it stay as they are at the start.
        cost: Cost of the model when each group loses a number of units; it never rises with a number.
        limit: Cost that the model may have.
        num_candidates: Number of candidates to try.
        equal: Groups that lose as many units as another one, by the name of that, which has levels.
    """

    start: Counts
    levels: Mapping[str, Sequence[int]]
    cost: Callable[[Counts], float]
    limit: float
    num_candidates: int
    equal: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Digest of the problem, except for the cost, which follows from the dense model and the resource."""
        levels = {name: [len(values), values[0], values[-1]] for name, values in self.levels.items()}
        return digest([dict(self.start), levels, self.limit, self.num_candidates])

    def is_met(self, counts: Counts) -> bool:
        """Return whether an allocation meets the limit."""
        return self.cost(counts) <= self.limit * (1 + _SLACK)


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The result of a search.

    Attributes:
        counts: Units that each group loses.
        start_score: Score of the allocation that the search began with, on the images held back.
        score: Score of the result, on the images held back; never above `start_score`.
        num_candidates: Number of candidates that were tried.
    """

    counts: Counts
    start_score: float
    score: float
    num_candidates: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; `Allocation(**values)` restores it."""
        return asdict(self)


Allocate = Callable[[AllocationProblem], Allocation]
"""Solves a problem, or looks up its solution."""


def search_allocation(problem: AllocationProblem, evaluate: Evaluate, *, seed: int = 0) -> Allocation:
    """Search for an allocation with a low score that meets the limit.

    1. Offspring of the best allocation so far each move budget: some groups get units back, others lose more until the
       limit is met again, and what is left over is given back.
    2. All of them are scored on some images, and the best two on all images.
    3. The better of these replaces the parent if its score is lower.
    4. At the end, the result is compared with the start on images held back. If it is not better there, the search has
       only learned its images by heart, and the start is returned.

    The result depends on the seed, not on how `evaluate` spreads candidates over workers. None is tried twice.

    Args:
        problem: The budget, and the allocation to begin with.
        evaluate: Scores candidates.
        seed: Seed of the moves.
    """
    generator = np.random.default_rng(seed)
    parent = dict(problem.start)
    (best,) = evaluate([parent], "all")
    tried, seen = 0, {_frozen(parent)}
    while tried < problem.num_candidates:
        number = min(NUM_OFFSPRING, problem.num_candidates - tried)
        offspring = _offspring(problem, parent, seen, number, generator)
        if not offspring:
            break
        tried += len(offspring)
        if len(offspring) > NUM_SURVIVORS:
            first = np.argsort(evaluate(offspring, "some"), kind="stable")
            offspring = [offspring[place] for place in first[:NUM_SURVIVORS]]
        scores = evaluate(offspring, "all")
        least = int(np.argmin(scores))
        if scores[least] < best:
            parent, best = offspring[least], scores[least]
    start, found = (float(score) for score in evaluate([dict(problem.start), parent], "held_back"))
    if found >= start:
        parent, found = dict(problem.start), start
    return Allocation(counts=parent, start_score=start, score=found, num_candidates=tried)


def _frozen(counts: Counts) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((name, count) for name, count in counts.items() if count))


def _offspring(
    problem: AllocationProblem,
    parent: Counts,
    seen: set[tuple[tuple[str, int], ...]],
    number: int,
    generator: np.random.Generator,
) -> list[dict[str, int]]:
    """Return new allocations that meet the limit, fewer if hardly any are left, and add them to `seen`."""
    found: list[dict[str, int]] = []
    for _ in range(_ATTEMPTS * number):
        if len(found) == number:
            break
        child = _Move(problem, parent, generator).make()
        if child is not None and _frozen(child) not in seen:
            seen.add(_frozen(child))
            found.append(child)
    return found


class _Move:
    """One mutation of an allocation."""

    def __init__(self, problem: AllocationProblem, parent: Counts, generator: np.random.Generator) -> None:
        self._problem = problem
        self._counts = dict(parent)
        self._generator = generator
        self._places = {name: list(levels).index(parent.get(name, 0)) for name, levels in problem.levels.items()}

    def make(self) -> dict[str, int] | None:
        """Return the mutated allocation, or None if this move leads to none that meets the limit."""
        names = list(self._places)
        order = [names[place] for place in self._generator.permutation(len(names))]
        # The smaller of two draws, as in EvoPress: most offspring change two groups, some change more.
        switches = int(self._generator.integers(1, _MOST_SWITCHES + 1, size=2).min())
        widened = [name for name in order if self._places[name] > 0][:switches]
        for name in widened:
            self._step(name, -self._size(name))
        others = [name for name in order if name not in widened]
        if not self._narrow(others[:switches]) and not self._narrow(others[switches:]):
            return None
        self._give_back([*others, *widened])
        return self._counts

    def _size(self, name: str) -> int:
        most = max(1, math.ceil(_LARGEST_MOVE * (len(self._problem.levels[name]) - 1)))
        return int(self._generator.integers(1, most + 1))

    def _step(self, name: str, change: int) -> bool:
        """Move a group by a number of levels, at most to the last one; return whether it moved."""
        levels, place = self._problem.levels[name], self._places[name]
        self._places[name] = min(max(place + change, 0), len(levels) - 1)
        for each in (name, *self._problem.equal.get(name, ())):
            self._counts[each] = levels[self._places[name]]
        return self._places[name] != place

    def _narrow(self, names: Sequence[str]) -> bool:
        """Narrow groups in turn until the limit is met, and return whether it is."""
        moved = True
        while moved and not self._problem.is_met(self._counts):
            moved = False
            for name in names:
                if not self._problem.is_met(self._counts):
                    moved |= self._step(name, self._size(name))
        return self._problem.is_met(self._counts)

    def _give_back(self, names: Sequence[str]) -> None:
        """Widen groups, one level at a time, as far as the limit allows, so that no budget is left unused."""
        for name in names:
            while self._places[name] > 0:
                self._step(name, -1)
                if not self._problem.is_met(self._counts):
                    self._step(name, 1)
                    break
