"""Sums of moments over batches of rows, in the way that suits the device they are on."""

from __future__ import annotations

import torch
from torch import Tensor

from cleanai_ray.repair.moment_values import LayerMoments

_ROWS_OF_A_MERGE = 2048


class RunningMoments:
    """Moments of several layers, whose rows are gathered until they are worth the work of a merge."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[Tensor]] = {}
        self._found: dict[str, LayerMoments] = {}

    def add(self, name: str, rows: Tensor) -> None:
        """Add rows [M, C] that a layer read."""
        waiting = self._waiting.setdefault(name, [])
        waiting.append(rows)
        if sum(len(each) for each in waiting) >= _ROWS_OF_A_MERGE:
            self._merge(name)

    def finish(self) -> dict[str, LayerMoments]:
        """Return the moments of the rows so far, by layer, on the CPU."""
        for name in list(self._waiting):
            self._merge(name)
        return {
            name: LayerMoments(count=moments.count, mean=moments.mean.cpu(), scatter=moments.scatter.cpu())
            for name, moments in self._found.items()
        }

    def _merge(self, name: str) -> None:
        moments = LayerMoments.of(torch.cat(self._waiting.pop(name)))
        self._found[name] = self._found[name] + moments if name in self._found else moments
