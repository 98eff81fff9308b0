"""Savings of groups, drawn to what the groups have in common as far as their timings are noise (empirical Bayes).

A budget narrows groups where they look fast, which is more often where noise flatters them (the winner's curse). Means
of what is not known, given all that was measured, have no such bias, whatever is chosen by them (Efron 2011, Tweedie's
formula and selection bias). So:

1. The noise is measured: in each comparison, the dense model is timed twice.
2. What a group saves is taken as a process over the share of its channels that is lost. It starts at 0 and rises in
   proportion to a power of the group's work, times a factor of the group's own; its rises over separate ranges of
   widths differ independently of each other, which allows stairs (Brownian motion with a drift).
3. The power, the drift and how much groups and rises differ are the values that make all measurements together most
   likely.
4. A group's savings are the mean of its process, given its measurements and their noise. Without noise, they are as
   measured.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_POWERS = (0.0, 0.5, 1.0)
_SPREADS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
"""Standard deviations that are tried, of a group's factor and of its rises, over the drift."""

_LEAST_WORK = 0.1
"""The least work that a group counts with, over the mean of all: what has none takes time all the same."""

_NUM_DENSE = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Savings:
    """The measurements of one group alone.

    Attributes:
        lost: Shares of the group's channels that are lost, above 0, in any order, [num_widths].
        saved: What the whole model saves there, over the dense model's time, [num_widths].
        work: The share of the model's work that goes with the whole group.
    """

    lost: np.ndarray
    saved: np.ndarray
    work: float


@dataclass(frozen=True, kw_only=True)
class _Prior:
    """What groups have in common: the power of their work, and two standard deviations."""

    power: float
    factor: float
    rises: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _Stack:
    """Groups that were timed at equally many widths: arrays [num_groups, num_widths], and [num_groups] for work."""

    names: Sequence[str]
    lost: np.ndarray
    saved: np.ndarray
    work: np.ndarray
    noise: np.ndarray

    def weights(self, power: float) -> np.ndarray:
        """Return the mean of the process over its drift, [num_groups, num_widths]."""
        return (self.work**power)[:, None] * self.lost

    def covariance(self, prior: _Prior) -> np.ndarray:
        """Return the covariance of the process at the widths, [num_groups, num_widths, num_widths]."""
        first, second = self.lost[:, :, None], self.lost[:, None, :]
        shared = prior.factor**2 * first * second + prior.rises**2 * np.minimum(first, second)
        return (self.work ** (2 * prior.power))[:, None, None] * shared


def noise_of(repeats: Iterable[float]) -> float:
    """Return the standard deviation of one timing over its mean; 0 without repeats.

    Args:
        repeats: Ratios of two timings of the same model. The variance of their logarithm is twice that of a timing.
    """
    logs = np.log(np.array(list(repeats), dtype=np.float64))
    return float(np.sqrt(np.mean(logs**2) / 2)) if len(logs) else 0.0


def shrunk(groups: Mapping[str, Savings], noise: float) -> dict[str, np.ndarray]:
    """Return the savings of each group, [num_widths], with noise taken out as far as it can be told.

    Args:
        groups: The measurements by group, each over the mean of two timings of the dense model.
        noise: The standard deviation of one timing, over its mean.
    """
    told = {name: found for name, found in groups.items() if len(found.lost)}
    slope = _slope(told)
    if not (noise > 0 and slope > 0):
        return {name: found.saved for name, found in groups.items()}
    stacks = _stacks(told, noise)
    spreads = [slope * spread for spread in _SPREADS]
    tried = (
        _Prior(power=power, factor=factor, rises=rises)
        for power, factor, rises in itertools.product(_POWERS, spreads, spreads)
    )
    prior = min(tried, key=lambda prior: _misfit(stacks, prior)[0])
    _, drift = _misfit(stacks, prior)
    means = {name: found.saved for name, found in groups.items()}
    for stack in stacks:
        expected, own = drift * stack.weights(prior.power), stack.covariance(prior)
        surprise = np.linalg.solve(own + stack.noise, (stack.saved - expected)[:, :, None])
        means |= zip(stack.names, expected + (own @ surprise)[:, :, 0], strict=True)
    return means


def _slope(groups: Mapping[str, Savings]) -> float:
    """Return what a group saves on average when all of it is lost, by least squares."""
    lost = np.concatenate([found.lost for found in groups.values()] or [np.zeros(0)])
    saved = np.concatenate([found.saved for found in groups.values()] or [np.zeros(0)])
    return float(lost @ saved / (lost @ lost)) if len(lost) else 0.0


def _stacks(groups: Mapping[str, Savings], noise: float) -> list[_Stack]:
    mean = math.fsum(found.work for found in groups.values()) / len(groups) or 1.0
    alike: dict[int, list[str]] = defaultdict(list)
    for name, found in groups.items():
        alike[len(found.lost)].append(name)
    stacks = []
    for size, names in alike.items():
        saved = np.stack([groups[name].saved for name in names])
        times = np.maximum(1.0 - saved, 0.0)
        # A ratio varies by its own timing, and with all others of its comparison by those of the dense model.
        common = np.eye(size) + 1.0 / _NUM_DENSE
        stacks.append(
            _Stack(
                names=names,
                lost=np.stack([groups[name].lost for name in names]),
                saved=saved,
                work=np.array([max(groups[name].work / mean, _LEAST_WORK) for name in names]),
                noise=noise**2 * common * times[:, :, None] * times[:, None, :] + 1e-12 * np.eye(size),
            )
        )
    return stacks


def _misfit(stacks: Sequence[_Stack], prior: _Prior) -> tuple[float, float]:
    """Return twice the negative logarithm of the likelihood, but for a constant, and the drift that makes it least."""
    own = cross = among = logs = 0.0
    for stack in stacks:
        root = np.linalg.cholesky(stack.covariance(prior) + stack.noise)
        both = np.stack([stack.weights(prior.power), stack.saved], axis=-1)
        weights, saved = np.moveaxis(np.linalg.solve(root, both), -1, 0)
        own += float((saved**2).sum())
        cross += float((weights * saved).sum())
        among += float((weights**2).sum())
        logs += 2 * float(np.log(np.diagonal(root, axis1=1, axis2=2)).sum())
    drift = max(cross / among, 0.0)
    return logs + own - 2 * drift * cross + drift**2 * among, drift
