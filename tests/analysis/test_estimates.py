"""Intervals of comparisons: as often right as they say on planted tables, and in agreement with their p-values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cleanai_ray.analysis.comparisons import Comparison, compare_cells
from cleanai_ray.analysis.estimates import ImageMeans, estimate

LEADS = np.array([16.2, 12.6, 5.1, 5.2, 1.5, 1.3])
"""Leads in six cells, as they were measured: in proportion to what pruning costs there."""

NUM_STUDIES = 2000
WITHIN = (0.93, 0.97)


def test_the_interval_is_that_of_the_mean_and_agrees_with_its_p_value() -> None:
    found = compare_cells(LEADS[:, None])
    # Six cells and one draw: Student's interval of the mean of the cells, and its t-test.
    expected = stats.ttest_1samp(LEADS, 0.0)
    interval = expected.confidence_interval()
    assert found.effect == pytest.approx(LEADS.mean())
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.unit == "cells"


@pytest.mark.parametrize("family", [1, 5, 12])
def test_an_interval_excludes_zero_exactly_where_its_p_value_is_below_the_level(family: int) -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        one = compare_cells(generator.normal(0.5, 1, (4, 3))).among(family)
        assert one.p_value is not None
        assert (one.is_above_zero or one.is_below_zero) == (one.p_value < 0.05)


def covered(truth: float, found: Comparison) -> bool:
    assert found.low is not None
    assert found.high is not None
    return found.low <= truth <= found.high


@pytest.mark.parametrize("num_draws", [3, 6])
@pytest.mark.parametrize("shared", [0.0, 0.5])
def test_coverage_over_draws_where_the_lead_grows_with_the_loss(num_draws: int, shared: float) -> None:
    generator, hits = np.random.default_rng(1), 0
    for _ in range(NUM_STUDIES):
        luck = shared * generator.standard_normal(num_draws) + 0.3 * generator.standard_normal((6, num_draws))
        hits += covered(LEADS.mean(), compare_cells(LEADS[:, None] + luck))
    assert WITHIN[0] <= hits / NUM_STUDIES <= WITHIN[1]


@pytest.mark.parametrize("num_cells", [4, 12])
def test_coverage_over_cells_where_there_is_one_draw(num_cells: int) -> None:
    generator = np.random.default_rng(2)
    hits = sum(covered(1.0, compare_cells(generator.normal(1, 2, (num_cells, 1)))) for _ in range(NUM_STUDIES))
    assert WITHIN[0] <= hits / NUM_STUDIES <= WITHIN[1]


def crossed(generator: np.random.Generator, draws: float, images: float, rest: float) -> tuple[np.ndarray, np.ndarray]:
    """Differences of 4 draws on 300 images, in points, and their means over images: the truth is zero."""
    table = draws * generator.standard_normal((4, 1)) + images * generator.standard_normal((1, 300))
    table = table + rest * generator.standard_normal((4, 300))
    return table, table.mean(axis=1)


@pytest.mark.parametrize(
    ("draws", "images", "rest"), [(1.0, 3.0, 10.0), (0.5, 20.0, 5.0), (1.0, 17.0, 10.0), (2.0, 5.0, 5.0)]
)
def test_coverage_over_draws_and_images_together(draws: float, images: float, rest: float) -> None:
    generator, hits = np.random.default_rng(3), 0
    for _ in range(NUM_STUDIES):
        table, means = crossed(generator, draws, images, rest)
        hits += covered(0.0, compare_cells(means[None, :], images=ImageMeans(table, table.mean(axis=0)[None, :])))
    assert WITHIN[0] <= hits / NUM_STUDIES <= WITHIN[1]


def test_draws_alone_do_not_cover_what_other_images_would_say() -> None:
    generator, hits = np.random.default_rng(4), 0
    for _ in range(500):
        _, means = crossed(generator, 0.1, 20.0, 1.0)
        hits += covered(0.0, compare_cells(means[None, :]))
    assert hits / 500 < 0.5  # 20 points over 300 images are 1.15 points, which all draws share


def test_images_alone_where_nothing_else_varies() -> None:
    generator = np.random.default_rng(5)
    images = generator.standard_normal((1, 400))
    found = estimate(images.mean(axis=1)[:, None], images=ImageMeans(images, images))
    assert found is not None
    assert (found.unit, found.num_units) == ("images", 400)
    assert found.error == pytest.approx(images.std(ddof=1) / 20)


def test_seldom_is_any_of_ten_equal_pairs_told_apart() -> None:
    generator, alarms = np.random.default_rng(6), 0
    for _ in range(NUM_STUDIES):
        family = [compare_cells(generator.standard_normal((4, 3))).among(10) for _ in range(10)]
        alarms += any(one.is_above_zero or one.is_below_zero for one in family)
    assert alarms / NUM_STUDIES < 0.06


def test_draws_that_are_copies_count_once() -> None:
    cells = np.array([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [3.0, 3.0, 3.0]])
    found = estimate(cells)
    assert found is not None
    assert (found.unit, found.num_units) == ("cells", 3)
    assert found.error == pytest.approx(1 / np.sqrt(3))
    assert estimate(cells[:2]) is None
    assert estimate(np.array([[1.0, 2.0, 4.0]])) is not None  # three draws of one cell


def test_units_vary_by_an_image_at_least() -> None:
    found = estimate(np.full((4, 1), 2.0), grain=0.1)
    assert found is not None
    assert found.error == pytest.approx(0.05)


def test_what_can_be_detected_is_found_four_times_in_five() -> None:
    one = Comparison(effect=0.0, error=1.0, freedom=30.0)
    assert one.detectable is not None
    generator, found = np.random.default_rng(7), 0
    for _ in range(4000):
        seen, error = generator.normal(one.detectable, 1), np.sqrt(generator.chisquare(30) / 30)
        found += Comparison(effect=seen, error=error, freedom=30.0).is_above_zero
    assert 0.77 < found / 4000 < 0.83
