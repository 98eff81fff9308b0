"""Consumers of the same size during elimination, updated together by batched operations on any device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 64
"""Channels removed between two rebuilds of the matrices. In between, removals are low-rank corrections."""
_CROWDED = 0.8
"""Matrices are cut down to the units that are left once these are at most this share of their rows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Quadratic:
    """What elimination reads of one consumer, for the C = units x k channels of a group, in the order of its units.

    Removing channel c turns the weight W into W - W[:, c] h^T / d and the inverse P into P - h h^T / d, with
    h = P[:, c] and d = h[c] (the optimal brain surgeon's update). Channels that are in no unit are never removed, and
    no update of the others reads their rows: they are left out.

    Attributes:
        inverse: P = (S + L)^-1 of the whole consumer, [C, C].
        gram: Q = W^T W, summed over kernel positions, [C, C].
        energy: The energy of the whole consumer's output, tr(W S W^T), []; infinite where it counts as zero.
        size: Channels of a unit, k.
    """

    inverse: Tensor
    gram: Tensor
    energy: Tensor
    size: int


class ConsumerStack:
    """Consumers whose units are removed one at a time, a unit of each consumer at once.

    With the scaled row h = P[c] / sqrt(P[c, c]), removing channel c is P' = P - h h^T and Q' = Q - v h^T - h v^T with
    v = (Q[c] / d - Q[c, c] P[c] / (2 d^2)) sqrt(d), d = P[c, c]. Corrections are gathered and applied a block at a
    time, by one matrix product each; only the units' own blocks on the diagonals are always up to date.

    Args:
        consumers: The consumers, all with the same numbers of units and of channels in each.
        groups: The row of the consumer's group in whatever is computed for several groups, [M].
        least: Least diagonal element that an inverse can have; less is rounding.
    """

    def __init__(self, consumers: list[Quadratic], groups: Tensor, least: float) -> None:
        self.groups = groups
        self._size = consumers[0].size
        self._least = least
        self._energy = torch.stack([consumer.energy for consumer in consumers])[:, None]
        self._inverse = torch.stack([consumer.inverse for consumer in consumers])
        self._gram = torch.stack([consumer.gram for consumer in consumers])
        self._each = torch.arange(len(consumers), device=self._gram.device)
        self._reset()

    def _reset(self) -> None:
        """Begin a block of corrections: none is pending."""
        number, width = self._gram.shape[:2]
        block = min(_BLOCK, width)
        # Rows h, rows v, and rows h again: [h; v] and [v; h] are the two factors of a correction of Q.
        self._rows = self._gram.new_zeros(number, 3, block, width)
        self._pending = 0
        self._inverse_blocks, self._gram_blocks = self._blocks(self._inverse), self._blocks(self._gram)

    def _blocks(self, matrix: Tensor) -> Tensor:
        """Return the rows and columns of each unit, [M, units, k, k]."""
        tiles = matrix.unflatten(1, (-1, self._size)).unflatten(3, (-1, self._size))
        return tiles.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).clone()

    def costs(self) -> Tensor:
        """Return the relative error that removing each unit would add, [M, units]; of units that are gone, nonsense."""
        inverse, gram = self._inverse_blocks, self._gram_blocks
        if self._size == 1:
            costs = gram[:, :, 0, 0] / inverse[:, :, 0, 0].clamp_min(self._least)
        else:
            answers, failed = torch.linalg.solve_ex(inverse, gram)
            costs = answers.diagonal(dim1=2, dim2=3).sum(dim=2).masked_fill(failed != 0, torch.nan)
        return costs.clamp_min(0) / self._energy

    def remove(self, units: Tensor) -> None:
        """Remove a unit of each consumer, [M]."""
        for offset in range(self._size):
            self._take(units * self._size + offset)
            if self._pending == self._rows.shape[2]:
                self._flush()

    def _take(self, channels: Tensor) -> None:
        done, each = self._pending, self._each
        rows = torch.stack([self._inverse[each, channels], self._gram[each, channels]], dim=1)
        if done:
            at = self._rows[each, :2, :done, channels]
            rows.baddbmm_(at, self._rows[:, 0, :done], alpha=-1)
            rows[:, 1:].baddbmm_(at[:, :1], self._rows[:, 1, :done], alpha=-1)
        pivots = rows.gather(2, channels[:, None, None].expand(-1, 2, 1))
        pivot = pivots[:, 0].clamp_min(self._least)
        root = pivot.sqrt()
        own = rows[:, 0] / root
        other = (rows[:, 1] / pivot - pivots[:, 1] * rows[:, 0] / (2 * pivot**2)) * root
        for place, row in enumerate((own, other, own)):
            self._rows[:, place, done] = row
        self._pending += 1
        h, v = own.unflatten(1, (-1, self._size)), other.unflatten(1, (-1, self._size))
        self._inverse_blocks -= h[:, :, :, None] * h[:, :, None, :]
        cross = v[:, :, :, None] * h[:, :, None, :]
        self._gram_blocks -= cross + cross.transpose(2, 3)

    def _flush(self) -> None:
        """Apply the pending corrections to the matrices."""
        self._rows[:, :, self._pending :] = 0
        h, hv, vh = self._rows[:, 0], self._rows[:, :2].flatten(1, 2), self._rows[:, 1:].flatten(1, 2)
        self._inverse.baddbmm_(h.transpose(1, 2), h, alpha=-1)
        self._gram.baddbmm_(hv.transpose(1, 2), vh, alpha=-1)
        self._pending = 0

    def is_crowded(self, num_alive: int) -> bool:
        """Return whether most of what the matrices hold is of units that are gone, so that `keep` pays."""
        return self._pending == 0 and num_alive * self._size <= _CROWDED * self._gram.shape[1]

    def keep(self, units: Tensor) -> None:
        """Cut the matrices down to some units of each consumer, [M, units], ascending; these are then 0, 1, ...."""
        self._flush()
        offsets = torch.arange(self._size, device=units.device)
        channels = (units[:, :, None] * self._size + offsets).flatten(1)
        self._inverse, self._gram = (
            torch.stack(
                [
                    each.index_select(0, some).index_select(1, some)
                    for each, some in zip(matrices, channels, strict=True)
                ]
            )
            for matrices in (self._inverse, self._gram)
        )
        self._reset()
