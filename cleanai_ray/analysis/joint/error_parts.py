"""The distribution of an effect whose error has several independent parts, each with its own degrees of freedom.

Half the width of an interval is the root of the sum of the squares of the half widths that each part has alone at the
same level (Zou and Donner, Statistics in Medicine 27, 2008); what another part contains already is taken off likewise.
A part that rests on few units keeps its wide tails, also where many comparisons are shown together: one t distribution
with estimated degrees of freedom, or a difference of variances, would lose them where few units are alike by chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from scipy.optimize import brentq
from scipy.special import ndtri, stdtrit

_LEAST = 1e-15


@dataclass(frozen=True)
class Part:
    """A part of an error.

    Attributes:
        error: Its standard error, in the unit of the effect.
        freedom: Its degrees of freedom; infinite where the error is taken to be known.
        contained: The standard error within it that another part contains already.
        contained_freedom: The degrees of freedom of that.
    """

    error: float
    freedom: float = math.inf
    contained: float = 0.0
    contained_freedom: float = math.inf

    def square(self, probability: float) -> float:
        """Return the square of the distance that it exceeds with a probability on one side, less what is contained."""
        whole = self.error * _quantile(probability, self.freedom)
        return max(whole**2 - (self.contained * _quantile(probability, self.contained_freedom)) ** 2, 0.0)


def reach(parts: Sequence[Part], probability: float) -> float:
    """Return the distance that the whole error exceeds with a probability on one side.

    Args:
        parts: The parts.
        probability: The probability, in (0, 0.5].
    """
    return math.sqrt(sum(part.square(probability) for part in parts))


def tail(parts: Sequence[Part], distance: float) -> float:
    """Return the probability that the whole error exceeds a distance on one side, the inverse of `reach`.

    Args:
        parts: The parts.
        distance: The distance, at least zero; probabilities below 1e-15 are given as that.
    """
    if distance <= 0:
        return 0.5
    if reach(parts, _LEAST) <= distance:
        return _LEAST if any(part.error for part in parts) else 0.0

    def excess(logarithm: float) -> float:
        return reach(parts, math.exp(logarithm)) - distance

    return math.exp(float(brentq(excess, math.log(_LEAST), math.log(0.5), xtol=1e-12)))


@lru_cache(maxsize=4096)
def _quantile(probability: float, freedom: float) -> float:
    found = ndtri(probability) if math.isinf(freedom) else stdtrit(freedom, probability)
    return -float(found)
