"""Errors over several runs: how often intervals cover and verdicts are wrong; trainings are nested in networks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from cleanai_ray.analysis.joint.difference import LIKE_THESE, THESE, JointDifference, Scope
from cleanai_ray.analysis.joint.error_parts import Part, reach, tail
from cleanai_ray.analysis.joint.errors import error_parts, weights_of

GROUPS = (0, 0, 0, 1, 1, 1, 2, 2, 2)
TRAININGS = np.array(GROUPS)
WITHIN = np.repeat(np.eye(3), 3, axis=1) / 3


@dataclass(frozen=True)
class Truth:
    """Standard deviations of what nine runs of three draws are the sum of, in points; `image`: of one of 200 images."""

    network: float = 0.0
    training: tuple[float, float, float] = (0.1, 0.1, 0.1)
    draw: float = 0.0
    network_draw: float = 0.0
    rest: float = 0.2
    image: float = 0.0


def simulated(random: np.random.Generator, truth: Truth) -> tuple[JointDifference, float]:
    """An effect over nine runs of three draws, and the true mean of these networks; that of all networks is zero."""
    normal = random.standard_normal
    network = truth.network * normal(3)
    values = (network[TRAININGS] + np.array(truth.training)[TRAININGS] * normal(9))[:, None]
    values = values + truth.draw * normal(3) + (truth.network_draw * normal((3, 3)))[TRAININGS]
    values = values + truth.rest * normal((9, 3))
    images = None
    if truth.image:
        images = truth.image * normal(200) + truth.image / 4 * normal((9, 200))
        values, images = values + images.mean(axis=1, keepdims=True), values.mean(axis=1, keepdims=True) + images
    return effect_of(values, images), float(network.mean())


def effect_of(values: np.ndarray, images: np.ndarray | None) -> JointDifference:
    """The effect of a table of runs x draws, and of the same means as runs x images."""
    return JointDifference(
        float(values.mean()),
        error_parts(values, GROUPS, images),
        error_parts(WITHIN @ values, (0, 0, 0), None if images is None else WITHIN @ images),
        (("a", 0.0), ("b", 0.0), ("c", 0.0)),
        num_runs=9,
        num_pairs=27,
    )


EQUAL = (0.5, 0.5, 0.5)
TRUTHS = {
    "trainings": Truth(training=EQUAL),
    "trainings of unequal spread": Truth(training=(0.3, 0.3, 0.9)),
    "draws": Truth(draw=0.5),
    "draws of a network": Truth(training=(0.2, 0.2, 0.2), network_draw=0.5),
    "images": Truth(image=8.0),
    "images and trainings": Truth(training=(0.3, 0.3, 0.3), image=6.0),
}
MIXED = Truth(training=(0.3, 0.3, 0.3), draw=0.15, network_draw=0.3, rest=0.4, image=2.0)
"""Draws that act on all runs, on those of a network, and on each run: the first cannot be told well from the last."""


def coverage(truth: Truth, scope: Scope, num_studies: int = 1500) -> float:
    random, hits = np.random.default_rng(0), 0
    for _ in range(num_studies):
        found, here = simulated(random, truth)
        interval = found.interval(scope)
        assert interval is not None
        hits += interval[0] <= (here if scope == THESE else 0.0) <= interval[1]
    return hits / num_studies


@pytest.mark.slow
@pytest.mark.parametrize("name", TRUTHS)
def test_intervals_of_these_networks_cover_what_they_say(name: str) -> None:
    assert 0.93 <= coverage(TRUTHS[name], THESE) <= 0.97


@pytest.mark.slow
def test_where_draws_act_in_every_way_at_once_the_interval_is_rather_too_wide() -> None:
    assert 0.95 <= coverage(MIXED, THESE) <= 0.995
    assert 0.95 <= coverage(MIXED, LIKE_THESE) <= 0.995


@pytest.mark.slow
@pytest.mark.parametrize("network", [0.0, 0.8])
def test_intervals_of_networks_like_these_cover_what_they_say(network: float) -> None:
    assert 0.93 <= coverage(Truth(network=network, training=EQUAL), LIKE_THESE) <= 0.97


def test_pairs_of_runs_alone_would_be_too_sure() -> None:
    # As if nine trainings of three networks, in three draws, were 27 trials that nothing ties together.
    random, hits = np.random.default_rng(1), 0
    for _ in range(300):
        table = random.normal(0, 0.8, 3)[TRAININGS][:, None] + random.normal(0, 0.2, (9, 3))
        interval = stats.ttest_1samp(table.ravel(), 0).confidence_interval()
        hits += interval.low <= 0 <= interval.high
    assert hits / 300 < 0.7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("draws", 3),
        ("images and trainings", 3),
        ("trainings of unequal spread", 40),
        ("draws", 40),
        ("draws of a network", 40),
    ],
)
def test_in_five_studies_of_a_hundred_at_most_is_any_effect_of_nothing_told(name: str, family: int) -> None:
    random, num_studies = np.random.default_rng(2), 4800 // family
    alarms = 0
    for _ in range(num_studies):
        found = [simulated(random, TRUTHS[name])[0].among(family) for _ in range(family)]
        alarms += any(one.told is not None for one in found)
    assert alarms / num_studies <= 0.06  # two standard errors above 5 % of 1,600 studies, and of 120 at most seven


@pytest.mark.slow
def test_hits_and_misses_of_models_that_share_what_is_easy() -> None:
    # Bits, not numbers: two methods on images of their own ease, networks of their own taste, trainings of their own.
    random, covered = np.random.default_rng(3), 0
    for _ in range(600):
        ease = random.normal(1.2, 1.0, 300) + 0.4 * random.standard_normal((3, 300))[TRAININGS]
        luck = random.normal(0, 0.08, (2, 9, 1, 1)) + random.normal(0, 0.02, (2, 1, 3, 1))
        noise = random.standard_normal((2, 9, 3, 300)) + 0.3 * random.standard_normal((2, 1, 1, 300))
        hits = ease[:, None, :] + luck + 0.5 * noise > 0
        table = 100.0 * (hits[0].astype(float) - hits[1])
        interval = effect_of(table.mean(axis=2), table.mean(axis=1)).interval(THESE)
        assert interval is not None
        covered += interval[0] <= 0 <= interval[1]
    assert 0.93 <= covered / 600 <= 0.99


def test_the_part_of_the_units_is_that_of_a_hierarchical_bootstrap() -> None:
    random = np.random.default_rng(4)
    means = np.array([1.0, 2.0, 4.0, 3.0, 3.5, 7.0, 0.0, 1.0, 0.5])
    parts = error_parts(means[:, None], GROUPS)
    assert parts is not None
    drawn = np.zeros(40_000)
    for group in range(3):  # n - 1 of n trainings of each network, with replacement; all within them comes along
        own = means[3 * group : 3 * group + 3]
        drawn += random.choice(own, (40_000, 2)).mean(axis=1) / 3
    assert parts[0].error == pytest.approx(drawn.std(), rel=0.02)
    across = error_parts(means.reshape(3, 3).mean(axis=1)[:, None], (0, 0, 0))
    assert across is not None
    networks = random.choice(means.reshape(3, 3).mean(axis=1), (40_000, 2)).mean(axis=1)
    assert across[0].error == pytest.approx(networks.std(), rel=0.02)


def test_one_part_alone_is_student_or_gauss_and_several_are_the_root_of_squares() -> None:
    assert reach([Part(2.0, 5)], 0.025) == pytest.approx(2 * stats.t.isf(0.025, 5))
    assert reach([Part(2.0)], 0.001) == pytest.approx(2 * stats.norm.isf(0.001))
    both = [Part(1.0, 2), Part(2.0)]
    assert reach(both, 0.025) ** 2 == pytest.approx(stats.t.isf(0.025, 2) ** 2 + 4 * stats.norm.isf(0.025) ** 2)
    for probability in (0.3, 0.01, 1e-5):
        assert tail(both, reach(both, probability)) == pytest.approx(probability, rel=1e-6)
    assert tail(both, 0.0) == 0.5


def test_units_of_equal_groups_are_a_pooled_t_test() -> None:
    means = np.array([1.0, 2.0, 3.0, 11.0, 12.0, 13.0])
    parts = error_parts(means[:, None], (0, 0, 0, 1, 1, 1))
    assert parts is not None
    # Each group has variance 1: the mean of two means of three has 1 / 3 / 2 of it, with two degrees of freedom each.
    assert (parts[0].error, parts[0].freedom) == (pytest.approx((1 / 6) ** 0.5), pytest.approx(4))
    assert error_parts(means[:2, None], (0, 0)) is None
    assert error_parts(means[:2, None], (0, 1)) is None
    alone = error_parts(means[:4, None], (0, 0, 0, 1))  # the fourth is taken to vary as the first three do
    assert alone is not None
    assert (alone[0].error, alone[0].freedom) == (pytest.approx(((1 / 3 + 1) / 4) ** 0.5), 2)


def test_what_each_run_has_of_its_own_is_taken_off_what_all_share() -> None:
    # Interaction alone, rows and columns of which are zero: nothing is shared, and the units do not vary either.
    values = np.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    parts = error_parts(values, (0, 0, 0))
    assert parts is not None
    assert (parts[0].error, parts[1].error) == (0.0, 0.0)
    # The squares are 4 with (3 - 1)(3 - 1) degrees of freedom, so 1 a cell: its mean over 3 x 3 has the error 1 / 3.
    assert (parts[1].contained, parts[1].contained_freedom) == (pytest.approx(1 / 3), 4)
    assert reach(parts, 0.025) == 0.0
    both = Part(1.0, 2, 0.5, 4)
    expected = stats.t.isf(0.01, 2) ** 2 - (0.5 * stats.t.isf(0.01, 4)) ** 2
    assert reach([both], 0.01) == pytest.approx(expected**0.5)


def test_networks_weigh_the_same_however_often_they_were_trained() -> None:
    assert weights_of((0, 0, 0, 1)) == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])


def test_draws_and_images_that_all_share_are_a_part_of_their_own() -> None:
    draws = np.tile([0.0, 1.0, 5.0], (4, 1))
    parts = error_parts(draws, (0, 0, 1, 1))
    assert parts is not None
    assert (parts[0].error, parts[1].error) == (0.0, pytest.approx(np.std([0, 1, 5], ddof=1) / 3**0.5))
    assert (parts[1].freedom, parts[1].contained) == (2, 0.0)
    images = np.tile(np.arange(40.0), (4, 1))
    parts = error_parts(draws, (0, 0, 1, 1), images)
    assert parts is not None
    assert parts[2].error == pytest.approx(np.std(np.arange(40), ddof=1) / 40**0.5)
    assert parts[2].freedom == np.inf


def test_a_verdict_on_networks_like_these_needs_one_on_these() -> None:
    sure, unsure = (Part(0.1, 6),), (Part(10.0, 6),)
    for these, like, told in (
        (sure, sure, LIKE_THESE),
        (sure, unsure, THESE),
        (unsure, sure, None),
        (None, sure, LIKE_THESE),
        (None, None, None),
    ):
        found = JointDifference(1.0, these, like, (("a", 1.0),), 2, 2)
        assert found.told == told


def test_what_could_be_told_is_found_four_times_in_five() -> None:
    one = JointDifference(0.0, (Part(1.0, 30), Part(0.5)), None, (("a", 0.0),), 9, 9)
    assert one.detectable is not None
    random, found = np.random.default_rng(5), 0
    for _ in range(3000):
        seen = random.normal(one.detectable, np.sqrt(1.25))
        error = np.sqrt(random.chisquare(30) / 30)
        found += JointDifference(seen, (Part(error, 30), Part(0.5)), None, (("a", 0.0),), 9, 9).told is not None
    assert 0.76 < found / 3000 < 0.84


def test_the_networks_that_it_would_take_would_tell_it() -> None:
    found = JointDifference(1.0, None, (Part(1.0, 2),), (("a", 1.0), ("b", 0.0), ("c", 2.0)), 3, 3)
    needed = found.networks_needed
    assert needed is not None
    spread = 3**0.5  # of a network, since the mean of three has an error of 1
    random, told = np.random.default_rng(6), 0
    for _ in range(2000):
        told += stats.ttest_1samp(random.normal(1.0, spread, needed), 0).pvalue < 0.05
    assert 0.76 < told / 2000 < 0.86
