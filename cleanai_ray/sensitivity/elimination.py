"""Joint backward elimination: the channel whose removal hurts least next, given those that are gone already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_FLUSH = 64
"""Removals between two rebuilds of the matrices. In between, removals are low-rank corrections."""
_TINY = 1e-300
_LEAST_RIDGE = 1e-9
_SILENT = 1e-24
"""A channel with less than this share of the largest variance is constant: deviations of 1e-12 are rounding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """One consumer's reading of the channels of a group.

    Attributes:
        weight: The consumer's weight W, [outputs, channels, kernel positions], float64.
        covariance: Covariance S of its input channels, [channels, channels], float64.
        units: The input channels that belong to each unit of the group, [units, channels of a unit].
    """

    weight: Tensor
    covariance: Tensor
    units: Tensor


class _Consumer:
    """A consumer during elimination: the Gram matrix of what is left of W, and the inverse of (S + L).

    Both are for channels scaled to unit variance, which changes no error and keeps the inverse well conditioned.

    Removing channel c turns W into W - W[:, c] h^T / d and H^-1 into H^-1 - h h^T / d, with h = H^-1[:, c], d = h[c]
    (the optimal brain surgeon's update). Only the Gram matrix Q = W^T W (summed over kernel positions) is needed:
    Q' = Q - v h^T - h v^T with v = Q[:, c] / d - Q[c, c] h / (2 d^2).
    """

    def __init__(self, reading: Reading, ridge: float) -> None:
        ridge = max(ridge, _LEAST_RIDGE)
        scale, correlation = _standardised(reading.covariance)
        weight = reading.weight * scale[None, :, None]
        flat = weight.permute(0, 2, 1).reshape(-1, weight.shape[1])
        self._gram = flat.T @ flat
        self._energy = float((self._gram * correlation).sum())
        self._inverse = _inverse(correlation, ridge)
        # Of the inverse of any matrix with diagonal 1 + ridge, no diagonal element is less, so only rounding is cut.
        self._least = 1 / (1 + ridge)
        self._units = reading.units
        self._h = torch.zeros(len(scale), _FLUSH, dtype=scale.dtype)
        self._v = torch.zeros_like(self._h)
        self._pending = 0
        self._inverse_blocks, self._gram_blocks = self._blocks(self._inverse), self._blocks(self._gram)

    def _blocks(self, matrix: Tensor) -> Tensor:
        """Return the rows and columns of each unit, [units, channels of a unit, channels of a unit]."""
        return matrix[self._units[:, :, None], self._units[:, None, :]]

    def costs(self, alive: Tensor) -> Tensor:
        """Return the relative error that removing each of the units `alive` would add."""
        if self._energy <= _TINY:
            return torch.zeros(len(alive), dtype=self._gram.dtype)
        inverse, gram = self._inverse_blocks[alive], self._gram_blocks[alive]
        if inverse.shape[1] == 1:
            costs = gram[:, 0, 0] / inverse[:, 0, 0].clamp_min(self._least)
        else:
            costs = torch.linalg.solve(inverse, gram).diagonal(dim1=1, dim2=2).sum(dim=1)
        return costs.clamp_min(0) / self._energy

    def remove(self, unit: int) -> None:
        """Remove a unit's channels."""
        for channel in self._units[unit].tolist():
            if self._pending == _FLUSH:
                self._flush()
            self._take(channel)

    def _take(self, channel: int) -> None:
        done = self._pending
        h, v = self._h[:, :done], self._v[:, :done]
        column = self._inverse[:, channel] - h @ h[channel]
        gram = self._gram[:, channel] - v @ h[channel] - h @ v[channel]
        pivot = column[channel].clamp_min(self._least)
        root = pivot.sqrt()
        own = column / root
        other = (gram / pivot - gram[channel] * column / (2 * pivot**2)) * root
        self._h[:, done], self._v[:, done] = own, other
        self._pending += 1
        rows, columns = own[self._units], other[self._units]
        self._inverse_blocks -= rows[:, :, None] * rows[:, None, :]
        self._gram_blocks -= columns[:, :, None] * rows[:, None, :] + rows[:, :, None] * columns[:, None, :]

    def _flush(self) -> None:
        """Apply the pending corrections to the matrices."""
        self._inverse.addmm_(self._h, self._h.T, alpha=-1)
        cross = self._v @ self._h.T
        self._gram -= cross + cross.T
        self._pending = 0


def _standardised(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the standard deviation of each channel and the correlations, in which a constant channel has none.

    Variances that should be zero may have been rounded to something else, which may be negative.
    """
    variance = covariance.diagonal().clamp_min(0)
    silent = variance <= _SILENT * variance.max()
    scale = variance.sqrt().masked_fill(silent, 0)
    divisor = scale.masked_fill(silent, 1)
    correlation = (covariance / divisor[:, None] / divisor).clamp(-1, 1)
    correlation[silent] = 0
    correlation[:, silent] = 0
    correlation.fill_diagonal_(1)
    return scale, correlation


def _inverse(correlation: Tensor, ridge: float) -> Tensor:
    """Return (correlation + ridge I)^-1; eigenvalues that rounding made negative count as zero."""
    regular = correlation.clone()
    regular.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(regular)
    if not failed:
        return torch.cholesky_inverse(factor)
    values, vectors = torch.linalg.eigh(correlation)
    return (vectors / (values.clamp_min(0) + ridge)) @ vectors.T


def eliminate(readings: Sequence[Reading], *, ridge: float = 1e-3) -> tuple[list[int], list[float]]:
    """Remove the units of a group one by one, each time the one that adds least to the error, until one is left.

    The error of a consumer, when the removed input channels R are gone and the rest is refitted, is
    tr(W[:, R] ((S + L)^-1[R, R])^-1 W[:, R]^T) / tr(W S W^T), with L = ridge x diag(S): the least of
    |(W - W') x|^2 + |(W - W') L^1/2|^2 over W' with W'[:, R] = 0 (Hassibi and Stork 1993, for sets). The ridge is
    proportional to each channel's variance, so that a silent channel costs nothing however large its weights are. A
    group's error is the sum over its consumers.

    Args:
        readings: The consumers of the group, which all have the same number of units.
        ridge: Regularisation, as a share of each input's variance.

    Returns:
        The order, and the relative error after each removal.
    """
    consumers = [_Consumer(reading, ridge) for reading in readings]
    number = len(readings[0].units)
    alive = torch.arange(number)
    order: list[int] = []
    errors: list[float] = []
    total = 0.0
    for _ in range(number - 1):
        costs = torch.stack([consumer.costs(alive) for consumer in consumers]).sum(dim=0)
        least = int(costs.argmin())
        unit = int(alive[least])
        total += float(costs[least])
        order.append(unit)
        errors.append(total)
        alive = alive[alive != unit]
        for consumer in consumers:
            consumer.remove(unit)
    return order, errors
