"""The error of a mean over few draws and many images: its tails by simulation, its limits by Student and Gauss."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from cleanai_ray.analysis.comparisons import compare_cells
from cleanai_ray.analysis.estimates import ImageMeans
from cleanai_ray.analysis.two_errors import quantile, tail


@pytest.mark.parametrize(("units", "freedom", "images"), [(1.0, 2, 1.0), (0.3, 2, 1.0), (1.0, 5, 0.2), (0.05, 2, 1.0)])
@pytest.mark.parametrize("distance", [0.0, 1.0, 2.5, 6.0])
def test_the_tail_is_that_of_the_sum(units: float, freedom: int, images: float, distance: float) -> None:
    generator = np.random.default_rng(0)
    errors = units * generator.standard_t(freedom, 2_000_000) + images * generator.standard_normal(2_000_000)
    share = (errors > distance).mean()
    assert tail(distance, units, freedom, images) == pytest.approx(share, abs=4 * (share / 2_000_000) ** 0.5 + 1e-6)


@pytest.mark.parametrize("probability", [0.2, 0.025, 0.0025, 0.0001])
def test_the_quantile_is_where_the_tail_has_the_probability(probability: float) -> None:
    for units, freedom, images in ((1.0, 2, 1.0), (0.2, 2, 1.0), (3.0, 4, 1.0), (0.02, 2, 5.0)):
        distance = quantile(probability, units, freedom, images)
        assert tail(distance, units, freedom, images) == pytest.approx(probability, rel=1e-6)


def test_one_error_alone_is_student_or_gauss() -> None:
    assert quantile(0.025, 2.0, 3, 0.0) == pytest.approx(2 * stats.t.ppf(0.975, 3))
    assert quantile(0.025, 0.0, 3, 2.0) == pytest.approx(2 * stats.norm.ppf(0.975))
    assert quantile(0.025, 0.03, 3, 2.0) == pytest.approx(2 * stats.norm.ppf(0.975), rel=2e-3)
    assert tail(1.0, 0.5, 7, 0.0) == pytest.approx(stats.t.sf(2.0, 7))


def alarms_of(generator: np.random.Generator, num_draws: int, family: int, luck: float, ease: float) -> bool:
    """Whether any of several equal pairs is told apart: draws of their own luck on images of their own ease."""
    found = []
    for _ in range(family):
        table = luck * generator.standard_normal((num_draws, 1)) + ease * generator.standard_normal((1, 300))
        table = table + 5 * generator.standard_normal((num_draws, 300))
        images = ImageMeans(table, table.mean(axis=0)[None, :])
        found.append(compare_cells(table.mean(axis=1)[None, :], images=images).among(family))
    return any(one.p_value is not None and one.p_value < 0.05 for one in found)


@pytest.mark.parametrize(
    ("num_draws", "luck", "ease"), [(3, 0.6, 10.0), (3, 1.2, 10.0), (4, 0.6, 10.0), (3, 0.2, 10.0)]
)
def test_of_ten_equal_pairs_one_is_told_apart_in_five_studies_of_a_hundred_at_most(
    num_draws: int, luck: float, ease: float
) -> None:
    # The images make an error of 10 / sqrt(300) = 0.58 points, the draws one of luck / sqrt(their number): about equal,
    # where draws that are alike by chance would make a t distribution with many degrees of freedom.
    generator, num_studies = np.random.default_rng(1), 600
    alarms = sum(alarms_of(generator, num_draws, 10, luck, ease) for _ in range(num_studies))
    assert alarms / num_studies <= 0.05
