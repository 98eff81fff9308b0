"""One effect over all runs, with two intervals: for other trainings of these networks, and for networks like these."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from cleanai_ray.analysis.comparisons import ALPHA
from cleanai_ray.analysis.joint.error_parts import Part, reach, tail
from cleanai_ray.analysis.paired import POWER

Scope = Literal["networks like these", "these networks"]

LIKE_THESE: Scope = "networks like these"
THESE: Scope = "these networks"

_MOST_NETWORKS = 1000


@dataclass(frozen=True)
class JointDifference:
    """A mean over networks of the means of their trainings, and what it would vary by.

    Attributes:
        effect: The mean, in its unit.
        these: Parts of its error over other trainings of these networks, draws and images; None where too few vary,
            or they do not vary at all.
        like_these: The same over other networks like these, each trained anew.
        by_network: The mean of each network.
        num_runs: Runs that it rests on.
        num_pairs: Pairs of trials.
        num_images: Images that it is of, where they are known one by one; else 0.
        num_dropped: Draws of runs that were left out because a trial failed.
        num_near_chance: Draws of runs that were left out because both models are near chance.
        num_unknown: Draws of runs that were left out because the single images of a trial are not known.
        few_draws: The number of draws that all runs have, where it is too small for an interval; else None.
        threshold: The value that the effect is tested against.
        family: Effects that are shown together.
    """

    effect: float
    these: tuple[Part, ...] | None
    like_these: tuple[Part, ...] | None
    by_network: tuple[tuple[str, float], ...]
    num_runs: int
    num_pairs: int
    num_images: int = 0
    num_dropped: int = 0
    num_near_chance: int = 0
    num_unknown: int = 0
    few_draws: int | None = None
    threshold: float = 0.0
    family: int = 1

    def among(self, count: int) -> JointDifference:
        """Return the effect as one of `count` that are shown together, so that all intervals hold at once."""
        return replace(self, family=self.family * max(count, 1))

    def parts(self, scope: Scope) -> tuple[Part, ...] | None:
        """Return the parts of the error in a scope; None where too few units vary to tell."""
        return self.these if scope == THESE else self.like_these

    def interval(self, scope: Scope) -> tuple[float, float] | None:
        """Return the 95 % interval of the family in a scope; None where too few units vary to tell."""
        parts = self.parts(scope)
        if parts is None:
            return None
        width = reach(parts, ALPHA / (2 * self.family))
        return self.effect - width, self.effect + width

    @property
    def narrowest(self) -> Scope | None:
        """The scope that the p-value and the detectable difference are of: these networks where that is known."""
        return THESE if self.these is not None else LIKE_THESE if self.like_these is not None else None

    @property
    def p_value(self) -> float | None:
        """The two-sided p-value against the threshold in the narrowest scope, times the size of the family."""
        parts = None if self.narrowest is None else self.parts(self.narrowest)
        if parts is None:
            return None
        return min(1.0, self.family * 2 * tail(parts, abs(self.effect - self.threshold)))

    @property
    def detectable(self) -> float | None:
        """The least true difference from the threshold that would be found four times in five, likewise."""
        parts = None if self.narrowest is None else self.parts(self.narrowest)
        if parts is None:
            return None
        return reach(parts, ALPHA / (2 * self.family)) + reach(parts, 1 - POWER)

    @property
    def told(self) -> Scope | None:
        """The widest scope in which the effect is beyond doubt on one side of the threshold; None if in none.

        Of networks like these nothing is told that is not told of these networks: one chance to be wrong, not two.
        """
        if self.narrowest is None or not self._excludes(self.narrowest):
            return None
        return LIKE_THESE if self._excludes(LIKE_THESE) else self.narrowest

    def _excludes(self, scope: Scope) -> bool:
        interval = self.interval(scope)
        return interval is not None and not interval[0] <= self.threshold <= interval[1]

    @property
    def networks_needed(self) -> int | None:
        """The number of networks like these with which an effect of this size would be told, four times in five.

        None where too few networks are there to tell how they vary, or more than a thousand would be needed.
        """
        lead = abs(self.effect - self.threshold)
        if self.like_these is None or not lead:
            return None
        units, *others = self.like_these
        spread = units.error * math.sqrt(len(self.by_network))
        for count in range(3, _MOST_NETWORKS + 1):
            parts = [Part(spread / math.sqrt(count), count - 1), *others]
            if reach(parts, ALPHA / (2 * self.family)) + reach(parts, 1 - POWER) <= lead:
                return count
        return None
