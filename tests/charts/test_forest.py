"""The axis of forest plots."""

from __future__ import annotations

import pytest

from cleanai_ray.charts.forest import round_ticks


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (-0.9, 2.1, [-0.5, 0.0, 0.5, 1.0, 1.5, 2.0]),  # steps of 0.2 would be fifteen
        (-12.0, 30.0, [-10.0, 0.0, 10.0, 20.0, 30.0]),  # of 5, more than eight
        (-0.25, 0.25, [-0.2, -0.1, 0.0, 0.1, 0.2]),
    ],
)
def test_ticks_are_round_numbers_of_at_most_six_steps(low: float, high: float, ticks: list[float]) -> None:
    assert round_ticks(low, high) == pytest.approx(ticks)
