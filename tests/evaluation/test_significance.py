"""Intervals and tests against tables, sums of binomial coefficients and the formula solved by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cleanai_ray.evaluation.significance import is_near_chance, mcnemar_p, median_interval, wilson_interval

Z = 1.959963984540054  # the 97.5th percentile of the standard normal distribution


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_ends_of_the_interval_are_where_the_share_is_just_1_96_deviations_off(counts: tuple[int, int]) -> None:
    """Wilson's interval holds every p with |share - p| <= z sqrt(p (1 - p) / n); its ends are where both are equal."""
    hits, num = counts
    low, high = wilson_interval(hits, num)
    assert 0 <= low <= hits / num <= high <= 1
    for end in (low, high):
        assert abs(hits / num - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / num), abs=1e-9)


def test_an_interval_of_the_literature() -> None:
    """Newcombe 1998, table I, method 3 (score): 81/263, 15/148, 0/20, 1/29."""
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (hits, num), expected in published.items():
        assert wilson_interval(hits, num) == pytest.approx(expected, abs=5e-5)


def p_by_counting(lost: int, gained: int) -> float:
    """The share of all sequences of coins that are at least as one-sided as this one."""
    num, fewer = lost + gained, min(lost, gained)
    return min(1.0, 2 * sum(math.comb(num, count) for count in range(fewer + 1)) / 2**num)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_counts_sequences_of_coins(lost: int, gained: int) -> None:
    assert mcnemar_p(lost, gained) == pytest.approx(p_by_counting(lost, gained), rel=1e-9)
    assert mcnemar_p(lost, gained) == mcnemar_p(gained, lost)


def test_models_that_never_differ_may_be_equal() -> None:
    assert mcnemar_p(0, 0) == 1.0
    assert mcnemar_p(5, 0) == pytest.approx(2 / 2**5)


def test_the_interval_of_a_median_is_that_of_its_order_statistics() -> None:
    """The bootstrap's median of 25 values is at most the k-th of them when at least 13 draws are among the first k.

    So its distribution is a sum of binomial coefficients, and the 2.5th percentile is the first k for which that sum
    reaches 0.025. With 2,000 resamples the interval may end one value beside it.
    """
    values = np.arange(1.0, 26.0) ** 2

    def at_most(k: int) -> float:
        return sum(math.comb(25, n) * (k / 25) ** n * (1 - k / 25) ** (25 - n) for n in range(13, 26))

    first = next(k for k in range(1, 26) if at_most(k) >= 0.025)
    median, low, high = median_interval(np.random.default_rng(1).permutation(values))
    assert median == 13.0**2
    assert abs(math.sqrt(low) - first) <= 1
    assert abs(math.sqrt(high) - (26 - first)) <= 1
    assert median_interval(values[::-1].copy()) == median_interval(values[::-1].copy())


def test_equal_values_have_an_interval_without_width() -> None:
    assert median_interval(np.full(5, 1.5)) == (1.5, 1.5, 1.5)


@pytest.mark.parametrize(
    ("hits", "num", "dense", "classes", "broken"),
    [
        (1000, 10000, 0.93, 10, True),  # a constant answer: 0.106 <= 0.1 + 0.083
        (10, 100, 0.93, 10, True),  # the same on 100 images: 0.174
        (2, 10, 0.93, 10, False),  # on ten images nobody knows
        (2500, 10000, 0.93, 10, False),  # bad, but it has learned something
        (50, 50000, 0.76, 1000, True),
        (5000, 50000, 0.76, 1000, False),  # a hundred times chance
        (500, 1000, 0.95, 2, True),  # 0.531 <= 0.5 + 0.045
        (600, 1000, 0.95, 2, False),
        (100, 1000, 0.1, 10, False),  # the dense model knows nothing, either: there was nothing to break
    ],
)
def test_near_chance(hits: int, num: int, dense: float, classes: int, broken: bool) -> None:
    _, high = wilson_interval(hits, num)
    assert is_near_chance(high, dense, classes) is broken
