"""The removals that meet a limit of time, beside every choice there is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cleanai_ray.pruning.time_selection import harms_of_scores, spend_time

Cost = Callable[[Mapping[str, int]], float]


def best(levels: Mapping[str, list[int]], harms: Mapping[str, np.ndarray], cost: Cost, limit: float) -> float:
    """The least harm of all choices whose cost is within the limit."""
    found = math.inf
    for choice in itertools.product(*levels.values()):
        counts = dict(zip(levels, choice, strict=True))
        if cost(counts) <= limit * (1 + 1e-9):
            found = min(found, harm_of(harms, counts))
    return found


def harm_of(harms: Mapping[str, np.ndarray], counts: Mapping[str, int]) -> float:
    return sum(float(harms[name][count]) for name, count in counts.items())


def rising(start: float, slope: float, number: int) -> np.ndarray:
    """Harm whose every removal does more than the one before."""
    return np.concatenate([[0.0], np.cumsum(start + slope * np.arange(number))])


def planted(counts: Mapping[str, int]) -> float:
    """Three groups on a machine that computes whole fours: a saves 1 ms a four, b 3 ms, c nothing but all at once."""
    fours = {name: count // 4 for name, count in counts.items()}
    return 20.0 - 1.0 * fours.get("a", 0) - 3.0 * fours.get("b", 0) - (4.0 if fours.get("c", 0) == 3 else 0.0)


LEVELS = {"a": [0, 4, 8, 12], "b": [0, 4, 8, 12], "c": [0, 4, 8, 12]}
HARMS = {"a": rising(1.0, 0.5, 12), "b": rising(2.0, 1.0, 12), "c": rising(1.0, 0.0, 12)}


@pytest.mark.parametrize("limit", [19.0, 17.0, 16.0, 14.0, 13.0, 11.0, 10.0, 8.0, 5.0, 4.0])
def test_nothing_that_is_as_fast_does_less_harm_where_the_greedy_sequence_arrives(limit: float) -> None:
    counts = spend_time(LEVELS, HARMS, planted, limit, {})
    reached = planted(counts)
    assert reached <= limit
    assert harm_of(HARMS, counts) <= 1.3 * best(LEVELS, HARMS, planted, limit)


def test_a_stair_is_taken_at_once_where_a_step_of_it_saves_nothing() -> None:
    """c saves 4 ms with 12 units at a harm of 12, 3 for each; b's first four save 3 ms at 14, 4.67 for each."""
    assert spend_time(LEVELS, HARMS, planted, 16.0, {}) == {"c": 12}
    assert harm_of(HARMS, {"c": 12}) == best(LEVELS, HARMS, planted, 16.0)


def test_what_turned_out_not_to_be_needed_is_taken_back() -> None:
    """The first move is cheapest for each millisecond, and the second alone would have been enough."""
    levels, harms = {"a": [0, 1], "b": [0, 1]}, {"a": np.array([0.0, 1.0]), "b": np.array([0.0, 10.0])}
    counts = spend_time(levels, harms, lambda gone: 10.0 - gone.get("a", 0) - 9.0 * gone.get("b", 0), 1.0, {})
    assert counts == {"a": 0, "b": 1}


def hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The vertices of the lower convex hull of (cost, harm), from the dearest to the cheapest in time."""
    found: list[tuple[float, float]] = []
    for cost, harm in sorted(points, key=lambda point: (-point[0], point[1])):
        if found and harm >= found[-1][1] and cost >= found[-1][0] - 1e-9:
            continue
        while len(found) > 1:
            (c0, h0), (c1, h1) = found[-2:]
            if (h1 - h0) * (c0 - cost) < (harm - h0) * (c0 - c1) - 1e-9:
                break
            found.pop()
        found.append((cost, harm))
    return found


GROUP = st.tuples(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.lists(st.integers(0, 9), min_size=4))


@settings(max_examples=200, deadline=None)
@given(st.lists(GROUP, min_size=2, max_size=4), st.floats(0.0, 1.0))
def test_where_groups_save_independently_no_choice_is_better_at_any_vertex_of_the_hull(
    groups: list[tuple[list[int], list[int]]], share: float
) -> None:
    """Savings and harms of any shape, stairs and all: every choice there is, and the hull of them."""
    savings = {str(i): np.concatenate([[0.0], np.cumsum(saved)]) for i, (saved, _) in enumerate(groups)}
    harms = {
        str(i): np.concatenate([[0.0], np.cumsum(np.array(harm[: len(saved)]) + 1.0)])
        for i, (saved, harm) in enumerate(groups)
    }
    levels = {name: list(range(len(values))) for name, values in savings.items()}
    total = sum(float(values[-1]) for values in savings.values())
    assume(total > 0)

    def cost(counts: Mapping[str, int]) -> float:
        return 1.0 + total - sum(float(savings[name][count]) for name, count in counts.items())

    choices = [dict(zip(levels, choice, strict=True)) for choice in itertools.product(*levels.values())]
    vertices = hull([(cost(choice), harm_of(harms, choice)) for choice in choices])
    for time, least in vertices:
        assert least == pytest.approx(best(levels, harms, cost, time))
        assert harm_of(harms, spend_time(levels, harms, cost, time, {})) == pytest.approx(least)
    limit = 1.0 + share * total
    counts = spend_time(levels, harms, cost, limit, {})
    assert cost(counts) <= limit * (1 + 1e-9)
    reached = next(harm for time, harm in vertices if time <= limit * (1 + 1e-9))
    assert best(levels, harms, cost, limit) - 1e-9 <= harm_of(harms, counts) <= reached + 1e-9


def test_groups_that_lost_units_already_go_on_from_there() -> None:
    levels = {"a": [0, 2, 4]}
    harms = {"a": rising(1.0, 0.0, 4)}
    counts = spend_time(levels, harms, lambda gone: 10.0 - gone["a"] - gone["fixed"], 7.0, {"fixed": 1, "a": 0})
    assert counts == {"a": 2, "fixed": 1}


def test_a_limit_out_of_reach_gives_all_that_saves_time() -> None:
    levels = {"a": [0, 1, 2], "b": [0, 1]}
    harms = {"a": rising(1.0, 1.0, 2), "b": rising(1.0, 0.0, 1)}
    counts = spend_time(levels, harms, lambda gone: 5.0 - gone.get("a", 0), 1.0, {})
    assert counts == {"a": 2}  # b saves nothing, and stays


def test_scores_do_harm_by_the_share_that_is_lost() -> None:
    """(1 / 4)^1.5 = 1/8 for the first of two scores, 1 and 3; equal shares where nothing tells units apart."""
    harms = harms_of_scores({"a": np.array([1.0, 3.0]), "b": np.zeros(4), "c": np.array([-1.0, 0.0, 3.0])})
    assert harms["a"].tolist() == [0.0, 0.125, 1.0]
    assert harms["b"].tolist() == pytest.approx([0.0, 0.125, 0.5**1.5, 0.75**1.5, 1.0])
    assert harms["c"].tolist() == pytest.approx([0.0, 0.0, 0.2**1.5, 1.0])  # 0, 1 and 4 above the least
