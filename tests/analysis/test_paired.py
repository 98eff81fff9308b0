"""Paired differences: Tango's interval against a slow likelihood, agreement with McNemar's test, and coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from cleanai_ray.analysis.paired import (
    PairedDifference,
    detectable_difference,
    pair_up,
    paired_interval,
    paired_p,
)

Z = 1.959963984540054


def slow_score(lost: int, gained: int, n: int, difference: float) -> float:
    """The score with the restricted likelihood of three cells maximised by a search instead of a formula."""

    def unlikely(share: float) -> float:
        shares = share, share + difference, 1 - 2 * share - difference
        counts = lost, gained, n - lost - gained
        return -sum(count * math.log(max(value, 1e-300)) for count, value in zip(counts, shares, strict=True) if count)

    lowest, highest = max(0.0, -difference), (1 - difference) / 2
    share = minimize_scalar(unlikely, bounds=(lowest, highest), method="bounded", options={"xatol": 1e-12}).x
    return (gained - lost - n * difference) / math.sqrt(n * (2 * share + difference * (1 - difference)))


@pytest.mark.parametrize(("lost", "gained", "n"), [(30, 12, 200), (3, 9, 60), (86, 150, 1600), (1, 2, 40)])
def test_the_ends_are_where_the_score_is_the_quantile(lost: int, gained: int, n: int) -> None:
    low, high = (float(end) for end in paired_interval(lost, gained, n))
    assert low < (gained - lost) / n < high
    assert slow_score(lost, gained, n, low) == pytest.approx(Z, abs=2e-3)
    assert slow_score(lost, gained, n, high) == pytest.approx(-Z, abs=2e-3)


def test_models_that_never_differ_have_the_interval_of_no_event_in_n() -> None:
    # Both cells are empty: the score is n d / sqrt(n d (1 - d)), so the end is z^2 / (n + z^2), as Wilson's of 0 in n.
    found = PairedDifference(0, 0, 100)
    assert found.interval == pytest.approx((-100 * Z**2 / (100 + Z**2), 100 * Z**2 / (100 + Z**2)))
    assert (found.effect, found.p_value) == (0.0, 1.0)


def test_p_is_that_of_mcnemar_and_agrees_with_the_interval() -> None:
    # chi^2 = (30 - 12)^2 / 42 = 7.714: p = 0.00548
    assert PairedDifference(30, 12, 200).p_value == pytest.approx(0.00548, abs=1e-5)
    lost, gained = np.meshgrid(np.arange(0, 40.0), np.arange(0, 40.0))
    low, high = paired_interval(lost, gained, 300)
    assert np.array_equal(paired_p(lost, gained) < 0.05, (low > 0) | (high < 0))


def test_models_are_paired_image_by_image() -> None:
    first = np.array([1, 1, 0, 0, 1], dtype=bool)
    second = np.array([1, 0, 1, 0, 0], dtype=bool)
    found = pair_up(first, second)
    assert (found.lost, found.gained, found.num_images) == (1, 2, 5)
    assert found.effect == pytest.approx(20.0)


def test_what_can_be_detected() -> None:
    # 42 images of 2,000 differ, evenly: a standard error of sqrt(42) / 2000, times 1.96 + 0.84.
    assert PairedDifference(21, 21, 2000).detectable == pytest.approx(100 * 2.80159 * math.sqrt(42) / 2000, rel=1e-4)
    assert detectable_difference(1.0) == pytest.approx(2.80159, abs=1e-5)


@pytest.mark.parametrize(("lost", "gained", "n"), [(0.04, 0.03, 2000), (0.08, 0.02, 1000), (0.05, 0.05, 5000)])
def test_the_interval_covers_the_truth_as_often_as_it_says(lost: float, gained: float, n: int) -> None:
    counts = np.random.default_rng(0).multinomial(n, [lost, gained, 1 - lost - gained], size=20_000)
    low, high = paired_interval(counts[:, 0], counts[:, 1], n)
    assert 0.93 <= ((low <= gained - lost) & (gained - lost <= high)).mean() <= 0.97


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_equal_models_are_seldom_told_apart(share: float) -> None:
    counts = np.random.default_rng(1).multinomial(2000, [share / 2, share / 2, 1 - share], size=20_000)
    assert (paired_p(counts[:, 0], counts[:, 1]) < 0.05).mean() < 0.06
    # A trial that loses exactly the limit is called acceptable in 2.5 % of the studies.
    limit = 0.01
    counts = np.random.default_rng(2).multinomial(2000, [share / 2 + limit, share / 2, 1 - share - limit], size=20_000)
    low, _ = paired_interval(counts[:, 0], counts[:, 1], 2000)
    assert (-low < limit).mean() < 0.035


def test_a_test_finds_what_it_can_detect_four_times_in_five() -> None:
    truth, n = PairedDifference(60, 60, 2000).detectable / 100, 2000
    shares = [0.03 - truth / 2, 0.03 + truth / 2, 0.94]
    counts = np.random.default_rng(3).multinomial(n, shares, size=20_000)
    assert 0.77 < (paired_p(counts[:, 0], counts[:, 1]) < 0.05).mean() < 0.83
