"""Curves of groups that could not be measured, from those of the nearest groups that could."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from cleanai_ray.importance.curves import GroupCurve
from cleanai_ray.sensitivity.elimination import Reading


def fallback_order(readings: Sequence[Reading]) -> tuple[int, ...]:
    """Return the units of a group by what they contribute to their readers alone, least first; the last one stays.

    A channel contributes the squares of the weights that read it, times its variance, as a share of all channels'.
    """
    total = torch.zeros(len(readings[0].units), dtype=torch.float64)
    for reading in readings:
        power = reading.weight.square().sum(dim=(0, 2)) * reading.covariance.diagonal().clamp_min(0)
        power = torch.nan_to_num(power, nan=0.0)
        total += power[reading.units].sum(dim=1) / power.sum().clamp_min(torch.finfo(power.dtype).tiny)
    return tuple(total.argsort(stable=True)[:-1].tolist())


def estimate(curves: Sequence[GroupCurve], shares: Sequence[float]) -> list[GroupCurve]:
    """Fill the curves of groups that could not be measured in from their neighbours'.

    At the same share of removed units, errors and divergences lie on the line between those of the nearest measured
    groups before and after in the list; beyond the last one, they are the last one's.

    Args:
        curves: Curves in execution order; those that could not be measured say so in `estimated`, and lack their
            errors, their probes or both.
        shares: Shares of the units at which divergences are measured.
    """
    if all(curve.estimated is None for curve in curves):
        return list(curves)
    known = [index for index, curve in enumerate(curves) if curve.estimated is None and curve.order]
    filled = []
    for index, curve in enumerate(curves):
        if curve.estimated is not None:
            weights = _weights(index, known)
            curve = replace(
                curve,
                errors=curve.errors or tuple(_errors(curve, curves, weights).tolist()),
                probes=_probes(curve, curves, weights, shares),
            )
        filled.append(curve)
    return filled


def probed_numbers(num_units: int, shares: Sequence[float]) -> list[int]:
    """Return the numbers of removed units that are closest to some shares, ascending, each once."""
    return sorted({max(1, min(round(share * num_units), num_units - 1)) for share in shares}) if num_units > 1 else []


def _weights(index: int, known: Sequence[int]) -> Mapping[int, float]:
    """Return the weights of linear interpolation between the nearest known places on both sides."""
    before = max((other for other in known if other < index), default=None)
    after = min((other for other in known if other > index), default=None)
    if before is None or after is None:
        return {other: 1.0 for other in (before, after) if other is not None}
    return {before: (after - index) / (after - before), after: (index - before) / (after - before)}


def _errors(curve: GroupCurve, curves: Sequence[GroupCurve], weights: Mapping[int, float]) -> np.ndarray:
    wanted = np.arange(1, curve.num_units) / curve.num_units
    total = np.zeros(len(wanted))
    for other, weight in weights.items():
        total += weight * _at(curves[other], curves[other].errors, wanted)
    return total


def _probes(
    curve: GroupCurve, curves: Sequence[GroupCurve], weights: Mapping[int, float], shares: Sequence[float]
) -> tuple[tuple[int, float], ...]:
    if not any(curves[other].probes for other in weights):
        return ()
    numbers = probed_numbers(curve.num_units, shares)
    wanted = np.asarray(numbers) / curve.num_units
    total = np.zeros(len(numbers))
    for other, weight in weights.items():
        total += weight * _at(curves[other], curves[other].harm, wanted)
    return tuple(zip(numbers, total.tolist(), strict=True))


def _at(curve: GroupCurve, values: Sequence[float] | np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return a curve's values at shares of its units."""
    own = np.arange(curve.num_units) / curve.num_units
    return np.interp(shares, own, [0.0, *values])
