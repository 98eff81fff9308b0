"""Wilson's interval against its own definition, a published table and a search for its ends."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cleanai_ray.analysis.intervals import interval_of, wilson

Z = 1.959963984540054  # the 97.5th percentile of the standard normal distribution


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_ends_of_the_interval_are_where_the_share_is_just_1_96_deviations_off(counts: tuple[int, int]) -> None:
    """Wilson's interval holds every p with |share - p| <= z sqrt(p (1 - p) / n); its ends are where both are equal."""
    hits, num = counts
    interval = wilson(hits, num)
    low, high = interval.low, interval.high
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
        interval = wilson(hits, num)
        assert (interval.low, interval.high) == pytest.approx(expected, abs=5e-5)


def score_bound(accuracy: float, count: int, *, upper: bool) -> float:
    """Find by bisection the share p at which the score test of p against the observed accuracy just rejects."""
    inside, outside = accuracy, 1.0 if upper else 0.0
    for _ in range(200):
        middle = (inside + outside) / 2
        error = (middle * (1 - middle) / count) ** 0.5
        rejected = error == 0 or abs(accuracy - middle) / error > Z
        inside, outside = (inside, middle) if rejected else (middle, outside)
    return inside


@pytest.mark.parametrize(("accuracy", "count"), [(0.9231, 10000), (0.5, 40), (1.0, 360), (0.0, 25), (0.031, 3000)])
def test_wilson_inverts_the_score_test(accuracy: float, count: int) -> None:
    interval = interval_of({"accuracy": accuracy, "num_evaluated": count})
    assert interval is not None
    assert interval.low == pytest.approx(score_bound(accuracy, count, upper=False), abs=1e-9)
    assert interval.high == pytest.approx(score_bound(accuracy, count, upper=True), abs=1e-9)


@pytest.mark.parametrize(("hits", "count"), [(0.5, 0), (15, 10), (-1, 10)])
def test_wilson_refuses_nonsense(hits: float, count: int) -> None:
    with pytest.raises(ValueError, match="allowed"):
        wilson(hits, count)


@pytest.mark.parametrize("trial", [{"accuracy": None, "num_evaluated": 10}, {"accuracy": 0.5, "num_evaluated": None}])
def test_what_was_not_recorded_has_no_interval(trial: dict) -> None:
    assert interval_of(trial) is None
