"""An effect over several runs with its error, by loops over units: what a joint report computes, slowly."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy import stats

from cleanai_ray.analysis.numbers import signed

Piece = tuple[float, float, float, float]
"""A part of an error: its standard error and degrees of freedom, and those of what another part contains of it."""

NONE = "\N{EN DASH}"


@dataclass
class Effect:
    """A mean with the parts of its error in both scopes: see `Piece`."""

    mean: float
    these: list[Piece] | None
    like: list[Piece] | None
    by_network: dict[str, float]
    threshold: float = 0.0
    family: int = 1

    @property
    def narrowest(self) -> list[Piece] | None:
        return self.these if self.these is not None else self.like

    def span(self, parts: list[Piece] | None) -> str:
        if parts is None:
            return NONE
        width = half_width(parts, 0.025 / self.family)
        return f"{signed(self.mean - width)} to {signed(self.mean + width)}"

    def excludes(self, parts: list[Piece] | None) -> bool:
        return parts is not None and half_width(parts, 0.025 / self.family) < abs(self.mean - self.threshold)

    @property
    def scope(self) -> str | None:
        if not self.excludes(self.narrowest):
            return None
        return "networks like these" if self.excludes(self.like) else "these networks"

    @property
    def told(self) -> str:
        """The interval of the scope in which it is told, else of the narrowest."""
        return self.span(self.like if self.scope == "networks like these" else self.narrowest)

    @property
    def could(self) -> str:
        if self.narrowest is None:
            return NONE
        return f"{half_width(self.narrowest, 0.025 / self.family) + half_width(self.narrowest, 0.2):.2f}"

    @property
    def p_value(self) -> float | None:
        if self.narrowest is None:
            return None
        low, high = 1e-15, 0.5  # the level at which the interval ends at the threshold, bisected
        for _ in range(200):
            middle = math.sqrt(low * high)
            if half_width(self.narrowest, middle) > abs(self.mean - self.threshold):
                low = middle
            else:
                high = middle
        return min(1.0, 2 * self.family * low)

    @property
    def cells(self) -> str:
        p_value = self.p_value
        shown = NONE if p_value is None else "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"
        return f"{signed(self.mean)} {self.span(self.these)} {self.span(self.like)} {self.could} {shown}"


@cache
def quantile(probability: float, freedom: float) -> float:
    return float(stats.norm.isf(probability) if math.isinf(freedom) else stats.t.isf(probability, freedom))


def half_width(parts: Sequence[Piece], probability: float) -> float:
    total = 0.0
    for error, freedom, contained, rest_freedom in parts:
        square = (error * quantile(probability, freedom)) ** 2 - (contained * quantile(probability, rest_freedom)) ** 2
        total += max(square, 0.0)
    return math.sqrt(total)


def parts_of(
    groups: list[list[np.ndarray]],
    draws: list[list[np.ndarray]],
    images: list[list[np.ndarray]] | None,
    grain: float,
) -> Any:
    """The parts of the error of the mean over groups of means of units: a list of units per group, values in each.

    `draws` are the values of the draws that all units have, alike.
    """
    freedom = sum(len(group) - 1 for group in groups)
    if freedom < 2:
        return None
    means = [[float(unit.mean()) for unit in group] for group in groups]
    known = [own for own in means if len(own) > 1]
    variances = [max(statistics.variance(own), grain**2) for own in known]
    if len(known) < len(groups):
        pooled = sum(statistics.variance(own) * (len(own) - 1) for own in known) / freedom
        shares = [max(pooled, grain**2) / len(own) for own in means]
        used: float = freedom
    else:
        shares = [variance / len(own) for variance, own in zip(variances, means, strict=True)]
        # The square of an estimated variance is too large on average: s^4 f / (f + 2) is not, with f = n - 1.
        squared = [share**2 * (len(own) - 1) / (len(own) + 1) for share, own in zip(shares, means, strict=True)]
        below = sum(square / (len(own) - 1) for square, own in zip(squared, means, strict=True))
        used = max((sum(shares) ** 2 - 2 * below) / below, min(len(own) - 1 for own in means))
        used = min(used, freedom)
    parts = [(math.sqrt(sum(shares)) / len(groups), used, 0.0, math.inf)]
    if draws[0][0].size >= 3:
        parts.append(common_part(draws, draws[0][0].size - 1))
    if images is not None and images[0][0].size >= 30:
        parts.append(common_part(images, math.inf))
    return parts


def common_part(groups: list[list[np.ndarray]], columns_freedom: float) -> Piece:
    """The part that columns make which all units share."""
    count = groups[0][0].size
    weights = [1 / (len(groups) * len(group)) for group in groups]
    columns = sum(weight * unit for weight, group in zip(weights, groups, strict=True) for unit in group)
    squares, freedom = 0.0, 0
    for group in groups:
        mean = sum(group) / len(group)
        for unit in group:
            squares += float(((unit - unit.mean() - mean + mean.mean()) ** 2).sum())
        freedom += (len(group) - 1) * (count - 1)
    contained = squares / freedom * sum(len(group) * weight**2 for weight, group in zip(weights, groups, strict=True))
    rest_freedom = math.inf if math.isinf(columns_freedom) else freedom
    errors = [math.sqrt(value / count) for value in (float(np.var(columns, ddof=1)), contained)]
    return errors[0], columns_freedom, errors[1], rest_freedom
