"""Durations in words."""

from __future__ import annotations

import pytest

from cleanai_ray.storage.durations import format_seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.44, "0.4 s"),
        (3.21, "3.2 s"),
        (5.0, "5 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.7, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
    ],
)
def test_a_duration_has_tenths_below_ten_seconds_and_two_units_above_a_minute(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
