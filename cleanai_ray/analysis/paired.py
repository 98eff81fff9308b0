"""The difference of two models on the same images: an interval and a p-value that agree, and what could be detected.

The interval is Tango's score interval of a paired difference (Statistics in Medicine 17, 1998), and the p-value that of
McNemar's test, which is the same score at a difference of zero: the interval excludes zero exactly where p < 0.05.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cleanai_ray.analysis.intervals import CONFIDENCE
from cleanai_ray.analysis.numbers import p_text, signed

Values = NDArray[np.float64]
Bits = NDArray[np.bool_]

POWER = 0.8
"""The power of a test at its minimum detectable difference."""

_HALVINGS = 60


@dataclass(frozen=True)
class PairedDifference:
    """The accuracy of one model minus that of another on the same images, in points.

    Attributes:
        lost: Images that only the other model gets right.
        gained: Images that only the first model gets right.
        num_images: All images.
        confidence: Level of the interval.
    """

    lost: int
    gained: int
    num_images: int
    confidence: float = CONFIDENCE

    @property
    def effect(self) -> float:
        """The difference, in points."""
        return 100 * (self.gained - self.lost) / self.num_images

    @property
    def interval(self) -> tuple[float, float]:
        """Both ends of the interval, in points."""
        low, high = paired_interval(self.lost, self.gained, self.num_images, self.confidence)
        return 100 * float(low), 100 * float(high)

    @property
    def p_value(self) -> float:
        """The two-sided p-value of McNemar's score test of equal accuracy."""
        return float(paired_p(self.lost, self.gained))

    @property
    def detectable(self) -> float:
        """The least true difference, in points, that would be found with a power of 80 %, given how often they differ.

        That is (z_0.975 + z_0.8) standard errors of the difference; where the models never differ, those of one image.
        """
        differ = max(self.lost + self.gained, 1) - (self.gained - self.lost) ** 2 / self.num_images
        return 100 * detectable_difference(math.sqrt(max(differ, 1.0)) / self.num_images)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{signed(self.effect)} points (95 % interval {signed(low)} to {signed(high)}, {p_text(self.p_value)})"


def detectable_difference(standard_error: float) -> float:
    """Return the least true difference that a two-sided test at 5 % finds with a power of 80 %, in the error's unit."""
    from scipy.stats import norm  # a second to load

    return float(norm.ppf((1 + CONFIDENCE) / 2) + norm.ppf(POWER)) * standard_error


def pair_up(first: Bits, second: Bits) -> PairedDifference:
    """Return the difference of two models, the first minus the second, from what each gets right: bits [N]."""
    return PairedDifference(int((second & ~first).sum()), int((first & ~second).sum()), len(first))


def paired_p(lost: int | Values, gained: int | Values) -> Values:
    """Return two-sided p-values of McNemar's score test; 1 where the models never differ."""
    from scipy.stats import norm  # a second to load

    lost, gained = np.asarray(lost, dtype=np.float64), np.asarray(gained, dtype=np.float64)
    return np.asarray(2 * norm.sf(np.abs(gained - lost) / np.sqrt(np.maximum(lost + gained, 1))))


def exact_p(lost: int, gained: int) -> float:
    """Return the two-sided p-value of McNemar's exact test, for few images: those that differ are as if by a coin."""
    from scipy.stats import binomtest  # a second to load

    return float(binomtest(lost, lost + gained, 0.5).pvalue) if lost + gained else 1.0


def paired_interval(
    lost: int | Values, gained: int | Values, num_images: int, confidence: float = CONFIDENCE
) -> tuple[Values, Values]:
    """Return Tango's score interval of gained minus lost, as fractions of the images.

    The ends are where the score equals the normal quantile. It falls as the difference rises, so they are bisected.

    Args:
        lost: Images that only the second model gets right; a number or [M].
        gained: Images that only the first model gets right; likewise.
        num_images: All images.
        confidence: Level of the interval.
    """
    from scipy.stats import norm  # a second to load

    lost, gained = np.asarray(lost, dtype=np.float64), np.asarray(gained, dtype=np.float64)
    quantile, estimate = norm.ppf((1 + confidence) / 2), (gained - lost) / num_images
    ends = []
    for side in (-1.0, 1.0):
        inside, outside = estimate, np.full_like(estimate, side)
        for _ in range(_HALVINGS):
            middle = (inside + outside) / 2
            is_inside = np.abs(_score(lost, gained, num_images, middle)) <= quantile
            inside, outside = np.where(is_inside, middle, inside), np.where(is_inside, outside, middle)
        ends.append(inside)
    return ends[0], ends[1]


def _score(lost: Values, gained: Values, num_images: int, difference: Values) -> Values:
    """Return Tango's score at a difference: its standard error is that of the likeliest shares with this difference."""
    linear = -lost - gained + (2 * num_images - gained + lost) * difference
    constant = -lost * difference * (1 - difference)
    share = (np.sqrt(np.maximum(linear**2 - 8 * num_images * constant, 0.0)) - linear) / (4 * num_images)
    variance = num_images * (2 * share + difference * (1 - difference))
    away = gained - lost - num_images * difference
    return np.where(variance > 0, away / np.sqrt(np.where(variance > 0, variance, 1.0)), np.sign(away) * np.inf)
