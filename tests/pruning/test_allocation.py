"""The search for an allocation: better than its start where that can be, never worse, and always within the limit."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleanai_ray.pruning.allocation import AllocationProblem, search_allocation

WEIGHTS = {"a": 3.0, "b": 1.0, "c": 2.0}
LEVELS = {name: range(9) for name in WEIGHTS}


def cost(counts: Mapping[str, int]) -> float:
    """Wide groups cost more; each neighbour's width counts, so that savings shrink as both narrow."""
    kept = {name: 10 - counts.get(name, 0) for name in WEIGHTS}
    return sum(WEIGHTS[name] * kept[name] for name in WEIGHTS) + 0.2 * (kept["a"] * kept["b"] + kept["b"] * kept["c"])


def problem(start: Mapping[str, int], number: int, **changes: object) -> AllocationProblem:
    limit = cost(start)
    return AllocationProblem(
        **{"start": start, "levels": LEVELS, "cost": cost, "limit": limit, **changes}, num_candidates=number
    )


def together(counts: Mapping[str, int]) -> float:
    """Errors that are harmless alone and add up to more than their sum in two groups at once: c alone should go."""
    return counts["a"] ** 2 + counts["b"] ** 2 + 0.1 * counts["c"] ** 2 + 2.0 * counts["a"] * counts["b"]


class Scorer:
    """Answers with a planted score, and keeps what it was asked."""

    def __init__(self, score=together) -> None:
        self.score = score
        self.asked: list[tuple[dict[str, int], str]] = []

    def __call__(self, candidates: Sequence[Mapping[str, int]], images: str) -> list[float]:
        self.asked += [(dict(candidate), images) for candidate in candidates]
        return [self.score(candidate) for candidate in candidates]


def test_the_best_of_all_allocations_is_found() -> None:
    start = {"a": 4, "b": 4, "c": 0}
    found = search_allocation(problem(start, 300), Scorer())
    allowed = [dict(zip(WEIGHTS, counts, strict=True)) for counts in itertools.product(range(9), repeat=3)]
    best = min(together(counts) for counts in allowed if cost(counts) <= cost(start) + 1e-9)
    assert together(start) == 64
    assert best < 16
    assert found.score == best == together(found.counts)
    assert found.start_score == 64


@settings(deadline=None, max_examples=60)
@given(
    start=st.fixed_dictionaries({name: st.integers(0, 8) for name in WEIGHTS}),
    scores=st.integers(0, 2**32 - 1),
    number=st.integers(0, 40),
    seed=st.integers(0, 5),
)
def test_a_search_never_ends_above_its_start_nor_over_the_limit(start, scores, number, seed) -> None:
    """With scores that have nothing to do with the allocation."""
    table = np.random.default_rng(scores).random(729)

    def score(counts: Mapping[str, int]) -> float:
        return float(table[counts["a"] * 81 + counts["b"] * 9 + counts["c"]])

    scorer = Scorer(score)
    found = search_allocation(problem(start, number), scorer, seed=seed)
    assert found.score == score(found.counts) <= found.start_score == score(start)
    assert found.num_candidates <= number
    for counts, _ in scorer.asked:
        assert cost(counts) <= cost(start) * (1 + 1e-9)
        assert all(counts[name] in LEVELS[name] for name in LEVELS)


def test_what_was_only_learned_by_heart_is_not_kept() -> None:
    """On the images held back, the greedy allocation is the best of all."""
    start = {"a": 4, "b": 4, "c": 0}

    class Misled(Scorer):
        def __call__(self, candidates: Sequence[Mapping[str, int]], images: str) -> list[float]:
            found = super().__call__(candidates, images)
            return found if images != "held_back" else [1.0 if dict(one) == start else 1.5 for one in candidates]

    scorer = Misled()
    found = search_allocation(problem(start, 40), scorer)
    assert (found.counts, found.score, found.start_score) == (start, 1.0, 1.0)
    assert min(together(counts) for counts, images in scorer.asked if images == "all") < together(start)


def test_what_is_left_over_of_the_budget_is_given_back() -> None:
    """No candidate could give a unit back to any group and still meet the limit."""
    scorer = Scorer()
    search_allocation(problem({"a": 4, "b": 4, "c": 4}, 60), scorer)
    for counts, _ in scorer.asked[1:]:
        wider = [{**counts, name: counts[name] - 1} for name in counts if counts[name]]
        assert all(cost(other) > cost({"a": 4, "b": 4, "c": 4}) for other in wider)


def test_groups_move_between_their_levels_and_others_stay() -> None:
    levels = {"a": (0, 2, 4, 6), "c": (0, 2, 4, 6, 8)}
    scorer = Scorer()
    found = search_allocation(problem({"a": 4, "b": 3, "c": 2}, 40, levels=levels), scorer)
    assert found.score < found.start_score
    for counts, _ in scorer.asked:
        assert counts["a"] in levels["a"]
        assert counts["c"] in levels["c"]
        assert counts["b"] == 3


def test_no_candidate_is_scored_twice_on_all_images_and_few_of_them_are() -> None:
    names = [f"group{number}" for number in range(8)]
    wide = AllocationProblem(
        start=dict.fromkeys(names, 20),
        levels=dict.fromkeys(names, range(41)),
        cost=lambda counts: float(sum(40 - count for count in counts.values())),
        limit=160.0,
        num_candidates=64,
    )
    scorer = Scorer(lambda counts: float(counts["group0"] ** 2 + counts["group7"]))
    found = search_allocation(wide, scorer)
    whole = [tuple(counts.items()) for counts, images in scorer.asked if images == "all"]
    first = [tuple(counts.items()) for counts, images in scorer.asked if images == "some"]
    assert len(set(first)) == len(first) == found.num_candidates == 64
    # The start, and two of each generation of eight.
    assert len(set(whole)) == len(whole) == 1 + 2 * 8


def test_the_result_depends_on_the_seed_and_not_on_how_candidates_are_spread() -> None:
    class OneByOne(Scorer):
        def __call__(self, candidates: Sequence[Mapping[str, int]], images: str) -> list[float]:
            return [super(OneByOne, self).__call__([one], images)[0] for one in reversed(candidates)][::-1]

    task = problem({"a": 4, "b": 4, "c": 2}, 24)
    assert search_allocation(task, Scorer(), seed=1) == search_allocation(task, OneByOne(), seed=1)
    asked = []
    for seed in (1, 2):
        scorer = Scorer()
        search_allocation(task, scorer, seed=seed)
        asked.append(scorer.asked)
    assert asked[0] != asked[1]


@pytest.mark.parametrize("levels", [{}, {"a": (4, 5)}])
def test_a_search_without_alternatives_ends_with_its_start(levels: dict[str, tuple[int, ...]]) -> None:
    found = search_allocation(problem({"a": 4, "b": 4, "c": 2}, 50, levels=levels), Scorer())
    assert found.counts == {"a": 4, "b": 4, "c": 2}
    assert found.num_candidates == 0


def test_candidates_whose_outputs_are_not_finite_lose() -> None:
    def score(counts: Mapping[str, int]) -> float:
        return float("inf") if counts["c"] > 2 else together(counts)

    found = search_allocation(problem({"a": 4, "b": 4, "c": 2}, 80), Scorer(score))
    assert found.score <= together({"a": 4, "b": 4, "c": 2})
    assert found.counts["c"] <= 2


def test_the_key_of_a_problem_follows_its_inputs() -> None:
    start = {"a": 4, "b": 4, "c": 2}
    keys = {
        problem(start, 24).key,
        problem(start, 25).key,
        problem({**start, "a": 3}, 24, limit=cost(start)).key,
        problem(start, 24, levels={"a": range(8)}).key,
        problem(start, 24, limit=90.0).key,
    }
    assert len(keys) == 5
    assert problem(start, 24).key == problem(dict(reversed(start.items())), 24).key
