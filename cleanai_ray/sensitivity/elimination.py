"""Joint backward elimination: the channel whose removal hurts least next, given those that are gone already."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cleanai_ray.nn.memory import working_bytes
from cleanai_ray.sensitivity.consumer_stack import ConsumerStack, Quadratic

_TINY = 1e-300
_LEAST_RIDGE = 1e-9
_COPIES = 6
"""Matrices of the size of a consumer's covariance that its elimination holds at the peak."""
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

    def to(self, device: torch.device) -> Reading:
        """Return the reading with its matrices on a device; the units stay on the CPU."""
        return replace(self, weight=self.weight.to(device), covariance=self.covariance.to(device))


@dataclass(frozen=True, eq=False)
class _Elimination:
    """The elimination of groups with the same number of units, one unit of each group at a time.

    Nothing is read back from the device before the end.

    Attributes:
        stacks: The consumers, a stack for each number of channels in a unit.
        number: Units of each group.
        table: Rows of the consumers of each group in all stacks' costs, one below the other; the row after the last is
            of zeros, and fills what is missing, [groups, consumers].
    """

    stacks: Sequence[ConsumerStack]
    number: int
    table: Tensor

    def run(self) -> tuple[Tensor, Tensor]:
        """Return the order and the errors added, each [groups, units - 1]."""
        rows = torch.arange(len(self.table), device=self.table.device)
        names = torch.arange(self.number, device=self.table.device).repeat(len(self.table), 1)
        alive = torch.ones_like(names, dtype=torch.bool)
        order, added = [], []
        for left in range(self.number, 1, -1):
            costs = self._costs()
            # No unit that is gone is chosen, even where the others' costs overflow.
            chosen = costs.clamp_max(torch.finfo(costs.dtype).max).masked_fill(~alive, torch.inf).argmin(dim=1)
            order.append(names[rows, chosen])
            added.append(costs[rows, chosen])
            alive[rows, chosen] = False
            for stack in self.stacks:
                stack.remove(chosen[stack.groups])
            if all(stack.is_crowded(left - 1) for stack in self.stacks):
                places = alive.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, : left - 1]
                for stack in self.stacks:
                    stack.keep(places[stack.groups])
                names, alive = names.gather(1, places), alive.gather(1, places)
        return torch.stack(order, dim=1), torch.stack(added, dim=1)

    def _costs(self) -> Tensor:
        """Return what removing each unit of each group adds to the group's error, [groups, units]."""
        costs = torch.cat([stack.costs() for stack in self.stacks])
        if len(costs) == len(self.table):
            return costs[self.table[:, 0]]
        return torch.cat([costs, torch.zeros_like(costs[:1])])[self.table].sum(dim=1)


def _quadratic(reading: Reading, ridge: float, device: torch.device) -> Quadratic:
    """Return what elimination reads of a consumer.

    Channels are scaled to unit variance, which changes no error and keeps the inverse well conditioned.
    """
    scale, correlation = _standardised(reading.covariance.to(device))
    weight = reading.weight.to(device) * scale[None, :, None]
    flat = weight.permute(0, 2, 1).reshape(-1, weight.shape[1])
    gram = flat.T @ flat
    energy = (gram * correlation).sum()
    inverse = _inverse(correlation, ridge)
    channels = reading.units.flatten().to(device)
    if not torch.equal(reading.units.flatten(), torch.arange(len(scale))):
        gram, inverse = (matrix.index_select(0, channels).index_select(1, channels) for matrix in (gram, inverse))
    return Quadratic(
        inverse=inverse,
        gram=gram,
        energy=energy.masked_fill(energy <= _TINY, torch.inf),
        size=reading.units.shape[1],
    )


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


def eliminate(
    readings: Sequence[Reading], *, ridge: float = 1e-3, device: torch.device | str = "cpu"
) -> tuple[list[int], list[float]]:
    """Remove the units of a group one by one, each time the one that adds least to the error, until one is left.

    The error of a consumer, when the removed input channels R are gone and the rest is refitted, is
    tr(W[:, R] ((S + L)^-1[R, R])^-1 W[:, R]^T) / tr(W S W^T), with L = ridge x diag(S): the least of
    |(W - W') x|^2 + |(W - W') L^1/2|^2 over W' with W'[:, R] = 0 (Hassibi and Stork 1993, for sets). The ridge is
    proportional to each channel's variance, so that a silent channel costs nothing however large its weights are. A
    group's error is the sum over its consumers.

    Args:
        readings: The consumers of the group, which all have the same number of units.
        ridge: Regularisation, as a share of each input's variance.
        device: Where to compute; in float64, which it must have.

    Returns:
        The order, and the relative error after each removal.
    """
    found = eliminate_together([readings], ridge=ridge, device=device)[0]
    if isinstance(found, Exception):
        raise found
    return found


Removals = tuple[list[int], list[float]]
"""The units of a group in the order of their removal, and the relative error after each."""


def eliminate_together(
    groups: Sequence[Sequence[Reading]], *, ridge: float = 1e-3, device: torch.device | str = "cpu"
) -> list[Removals | Exception]:
    """Return for each group what `eliminate` returns, or what it raises; groups of equal size are computed together.

    Args:
        groups: The consumers of each group.
        ridge: As for `eliminate`.
        device: As for `eliminate`.

    Raises:
        torch.OutOfMemoryError: When the device has no room for one group.
    """
    device, ridge = torch.device(device), max(ridge, _LEAST_RIDGE)
    found: dict[int, Removals | Exception] = {}
    room = working_bytes(device)  # before, since each of the workers has one core
    with _workers(device) as (pool, number):
        batches = _batches(groups, room // number)
        for result in pool.map(lambda places: _eliminate_batch(groups, places, ridge, device), batches):
            found.update(result)
    return [found[place] for place in range(len(groups))]


@contextmanager
def _workers(device: torch.device) -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """Yield a pool of threads and their number: one for a GPU; else as many as torch may use, each of one core.

    Removals are many small operations, one after another. Shared out over cores, each waits for the slowest core; a
    batch of groups for each core waits for nothing (torch's operations release Python's lock).
    """
    number = 1 if device.type == "cuda" else torch.get_num_threads()
    before = torch.get_num_threads()
    torch.set_num_threads(1 if number > 1 else before)
    try:
        with ThreadPoolExecutor(number, thread_name_prefix="elimination") as pool:
            yield pool, number
    finally:
        torch.set_num_threads(before)


def _batches(groups: Sequence[Sequence[Reading]], room: int) -> list[list[int]]:
    """Return the places of groups with equal numbers of units, together where `room` bytes allow; the dearest first."""
    by_number: dict[int, list[int]] = {}
    for place, readings in enumerate(groups):
        by_number.setdefault(len(readings[0].units), []).append(place)
    batches: list[list[int]] = []
    for places in by_number.values():
        free = 0
        for place in places:
            needed = sum(_COPIES * reading.covariance.nbytes for reading in groups[place])
            if needed > free:
                batches.append([])
                free = room
            batches[-1].append(place)
            free -= needed
    return sorted(
        batches,
        key=lambda places: sum(len(reading.covariance) ** 3 for place in places for reading in groups[place]),
        reverse=True,
    )


def _eliminate_batch(
    groups: Sequence[Sequence[Reading]], places: Sequence[int], ridge: float, device: torch.device
) -> dict[int, Removals | Exception]:
    """Return the removals of groups with the same number of units, or what stops one of them, by their places."""
    found: dict[int, Removals | Exception] = {}
    quadratics: dict[int, list[Quadratic]] = {}
    for place in places:
        try:
            quadratics[place] = [_quadratic(reading, ridge, device) for reading in groups[place]]
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ArithmeticError, ValueError) as error:
            found[place] = error
    number = len(groups[places[0]][0].units)
    if number == 1 or not quadratics:
        return {**{place: ([], []) for place in quadratics}, **found}
    order, added = (result.cpu() for result in _joined(list(quadratics.values()), number, ridge).run())
    results = zip(order.tolist(), added.cumsum(dim=1).tolist(), strict=True)
    return {**dict(zip(quadratics, results, strict=True)), **found}


def _joined(groups: Sequence[Sequence[Quadratic]], number: int, ridge: float) -> _Elimination:
    """Return the elimination of groups with the same number of units."""
    # Of the inverse of any matrix with diagonal 1 + ridge, no diagonal element is less, so only rounding is cut.
    least = 1 / (1 + ridge)
    consumers = [(row, each) for row, group in enumerate(groups) for each in group]
    consumers.sort(key=lambda consumer: consumer[1].size)
    device = consumers[0][1].gram.device
    stacks = []
    for _, some in itertools.groupby(consumers, key=lambda consumer: consumer[1].size):
        rows, members = zip(*some, strict=True)
        stacks.append(ConsumerStack(list(members), torch.tensor(rows, device=device), least))
    of_groups = [[index for index, (owner, _) in enumerate(consumers) if owner == row] for row in range(len(groups))]
    longest = max(len(found) for found in of_groups)
    table = [found + [len(consumers)] * (longest - len(found)) for found in of_groups]
    return _Elimination(stacks, number, torch.tensor(table, device=device))
