from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleanai_ray.evaluation.rounds import summarise, take_turns


def turns(names: str, warmup: int, runs: int, start: float = 50.0) -> tuple[str, dict[str, list[float]]]:
    """Return who ran, in order, and the times of a clock that begins at a time and ticks once a run."""
    order: list[str] = []

    def timer(name: str) -> Callable[[], float]:
        def run() -> float:
            order.append(name)
            return start + len(order)

        return run

    times = take_turns({name: timer(name) for name in names}, warmup=warmup, runs=runs)
    return "".join(order), times


def test_two_models_take_turns_in_an_order_that_is_reversed_every_round() -> None:
    order, times = turns("ab", 1, 3)
    assert order == "aabb" + "baabba"  # at first it is not known how long a pass takes
    assert times == {"a": [56.0, 57.0, 60.0], "b": [55.0, 58.0, 59.0]}  # the first round is dropped


def test_a_short_pass_counts_only_behind_another_of_the_same_model() -> None:
    """What a model finds in the cache is its own, whoever had the turn before."""
    order, times = turns("ab", 1, 3, start=0.0)
    assert order == "aabbbbaa" * 2
    assert times == {"a": [8.0, 10.0, 16.0], "b": [6.0, 12.0, 14.0]}


@pytest.mark.parametrize(("least_ms", "rounds"), [(0.0, 3), (600.0, 3), (601.0, 4), (800.0, 4), (1e9, 60)])
def test_rounds_go_on_until_they_have_taken_long_enough_or_are_twenty_times_as_many(
    least_ms: float, rounds: int
) -> None:
    times = take_turns({"a": lambda: 80.0, "b": lambda: 120.0}, warmup=2, runs=3, least_ms=least_ms)
    assert times == {"a": [80.0] * rounds, "b": [120.0] * rounds}
    assert {timing.num_rounds for timing in summarise(times).values()} == {rounds}


def test_of_more_models_each_comes_first_and_last_equally_often() -> None:
    order, times = turns("abc", 1, 6)
    assert order == "aabbcc" + "cbabcaacbcabbacabc"  # the first round, and the six that count
    rounds = [order[start : start + 3] for start in range(6, 24, 3)]
    for place in (0, 2):
        assert Counter(found[place] for found in rounds) == {"a": 2, "b": 2, "c": 2}
    assert {name: len(found) for name, found in times.items()} == dict.fromkeys("abc", 6)


def test_a_steady_machine_gives_the_medians() -> None:
    found = summarise({"dense": [4.0] * 5, "pruned": [2.0] * 5})
    assert found["dense"].p50 == pytest.approx(4.0)
    assert found["pruned"].p50 == pytest.approx(2.0)
    assert found["pruned"].speedup == pytest.approx(2.0)
    assert (found["dense"].speedup, found["dense"].speedup_low) == (None, None)


def test_the_undisturbed_time_is_not_moved_by_rounds_that_others_slow_down() -> None:
    """Of 11 rounds, 2 are below the 20th percentile and 8 above."""
    found = summarise({"dense": [5.0, 5.0, 5.0, *(9.0 + i for i in range(8))], "pruned": [2.0] * 11})
    assert found["dense"].fast == 5.0
    assert found["dense"].p50 > 5.0


def test_times_and_speed_up_agree_where_their_own_medians_contradict_each_other() -> None:
    """Medians alone say 1.9 against 2.0, slower; in each round but one, pruned takes half of dense's time."""
    pace = [1.0, 1.9, 1.95, 4.0, 4.2]
    times = {"dense": [1.0, 1.9, 1.95, 4.0, 4.2], "pruned": [value / 2 for value in pace[:4]] + [4.2]}
    found = summarise(times)
    assert found["pruned"].speedup == pytest.approx(2.0)
    assert found["dense"].p50 / found["pruned"].p50 == pytest.approx(2.0)


def test_what_is_told_of_a_machine_that_becomes_slow_halfway_is_not_the_luck_of_a_median() -> None:
    """5 fast rounds and 4 slow ones, in one of which only dense is caught: medians would be of different machines."""
    times = {"dense": [10.0] * 4 + [30.0] * 5, "pruned": [8.0] * 5 + [24.0] * 4}
    found = summarise(times)
    assert found["pruned"].speedup == pytest.approx(1.25)
    assert found["dense"].p50 / found["pruned"].p50 == pytest.approx(1.25)
    assert found["pruned"].p99 > 20


TIMES = st.lists(st.floats(0.01, 100), min_size=5, max_size=5)


@settings(max_examples=25, deadline=None)
@given(TIMES, TIMES)
def test_two_models_have_the_median_ratio_of_their_rounds(dense: list[float], pruned: list[float]) -> None:
    found = summarise({"dense": dense, "pruned": pruned})
    middle = sorted(a / b for a, b in zip(dense, pruned, strict=True))[2]
    speedup, low, high = (getattr(found["pruned"], name) for name in ("speedup", "speedup_low", "speedup_high"))
    assert math.isclose(speedup, middle, rel_tol=1e-6)
    assert low <= speedup <= high
    for timing in found.values():
        assert timing.p50 <= timing.p90 <= timing.p99


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=3, max_size=3), st.lists(st.floats(0.1, 10), min_size=6, max_size=6))
def test_models_that_are_slowed_alike_keep_their_exact_ratios(own: list[float], pace: list[float]) -> None:
    names = ("dense", "a", "b")
    found = summarise({name: [value * p for p in pace] for name, value in zip(names, own, strict=True)})
    for name, value in zip(names[1:], own[1:], strict=True):
        assert math.isclose(found[name].speedup or 0.0, own[0] / value, rel_tol=1e-6)
