"""Intervals and tests against tables, sums of binomial coefficients and the formula solved by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cleanai_ray.evaluation.significance import mcnemar_p, median_interval


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
