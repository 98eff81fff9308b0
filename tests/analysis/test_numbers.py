"""Numbers as a reader expects them."""

from __future__ import annotations

import pytest

from cleanai_ray.analysis import numbers

MINUS = "\N{MINUS SIGN}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (40551872, "40.6 M"),
        (999, "999"),
        (999_600, "1 M"),
        (4.12e9, "4.12 G"),
        (271, "271"),
        (26.6444, "26.6"),
        (0, "0"),
        (None, numbers.NONE),
    ],
)
def test_quantity(value: float | None, text: str) -> None:
    assert numbers.quantity(value) == text


@pytest.mark.parametrize(
    ("value", "reference", "text"),
    [
        (48, 100, f"{MINUS}52 %"),
        (95.5, 100, f"{MINUS}4.5 %"),
        (100, 100, "0 %"),
        (250, 100, "+150 %"),
        (1, 0, numbers.NONE),
    ],
)
def test_change(value: float, reference: float, text: str) -> None:
    assert numbers.change(value, reference) == text


@pytest.mark.parametrize(
    ("value", "text"), [(-0.0123, f"{MINUS}1.2 points"), (0.0004, "0.0 points"), (0.05, "+5.0 points")]
)
def test_points(value: float, text: str) -> None:
    assert numbers.points(value) == text


@pytest.mark.parametrize(
    ("ratio", "budget", "text"),
    [
        (0.3, None, "ratio 0.3"),
        (None, "macs=0.5", "MACs \N{LESS-THAN OR EQUAL TO} 50 %"),
        (None, "size_mb=2.5", "file \N{LESS-THAN OR EQUAL TO} 2.5 MB"),
        (None, "latency=0.6", "latency \N{LESS-THAN OR EQUAL TO} 60 %"),
        (None, "other", "other"),
        (None, None, "unspecified"),
    ],
)
def test_amount(ratio: float | None, budget: str | None, text: str) -> None:
    assert numbers.amount_text(ratio, budget) == text


def test_sizes_and_times() -> None:
    assert numbers.size(1_090_000) == "1.09 MB"
    assert numbers.size(512) == "512 B"
    assert numbers.milliseconds(0.89123) == "0.891 ms"
    assert numbers.times(1.8449) == "1.84\N{MULTIPLICATION SIGN}"
    assert numbers.significant(0.0000123) == "0.0000123"


def test_a_ratio_with_its_interval() -> None:
    sign, dash = "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"
    assert numbers.times_between(1.837, 1.7, 1.904) == f"1.84{sign} (1.70{dash}1.90)"
    assert numbers.times_between(1.837, None, None) == f"1.84{sign}"
    assert numbers.times_between(None, 1.0, 2.0) == numbers.NONE


@pytest.mark.parametrize(("value", "text"), [(0.0124, "p = 0.012"), (0.001, "p = 0.001"), (0.0009, "p < 0.001")])
def test_p_values(value: float, text: str) -> None:
    assert numbers.p_text(value) == text


def test_a_tie_is_rounded_alike_however_its_sum_was_taken() -> None:
    """Of 60,000 answers, 141 more that are right are 0.235 points, a tie that either sum may miss by a last bit."""
    assert numbers.signed(0.235 - 1e-14) == numbers.signed(0.235 + 1e-14)
