"""Sums of moments over batches of rows, in the way that suits the device they are on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cleanai_ray.repair.moment_values import LayerMoments

_ROWS_OF_A_MERGE = 2048


class RunningMoments:
    """Moments of several layers. Nothing waits for a device before they are read.

    On a processor, rows are gathered until they are worth the work of a merge, in float64. A GPU may be slow in float64
    and is fast in multiplying many rows at once: see `GramSums`.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, list[Tensor]] = {}
        self._found: dict[str, LayerMoments] = {}
        self._grams: dict[str, GramSums] = {}

    def add(self, name: str, rows: Tensor) -> None:
        """Add rows [M, C] that a layer read."""
        if rows.device.type != "cpu":
            if name not in self._grams:
                self._grams[name] = GramSums(rows)
            self._grams[name].add(rows)
            return
        waiting = self._waiting.setdefault(name, [])
        waiting.append(rows)
        if sum(len(each) for each in waiting) >= _ROWS_OF_A_MERGE:
            self._merge(name)

    def finish(self) -> dict[str, LayerMoments]:
        """Return the moments of the rows so far, by layer, on the CPU."""
        for name in list(self._waiting):
            self._merge(name)
        return {**self._found, **{name: sums.moments() for name, sums in self._grams.items()}}

    def _merge(self, name: str) -> None:
        moments = LayerMoments.of(torch.cat(self._waiting.pop(name)))
        self._found[name] = self._found[name] + moments if name in self._found else moments


class GramSums:
    """Sums over the rows x of one layer about a fixed reference r: of x - r, and of (x - r) (x - r)^T.

    r is the mean of the first batch, which is near that of all: nothing is lost when the sums are moved to the mean. A
    batch takes one matrix product, in float32 without TF32, and is added to the sums in float64.

    Args:
        rows: The first batch, [M, C], which is not added yet.
    """

    def __init__(self, rows: Tensor) -> None:
        self._reference = rows.double().mean(dim=0).to(_at_least_float32(rows))
        width = rows.shape[1]
        self._count = 0
        self._sum = torch.zeros(width, dtype=torch.float64, device=rows.device)
        self._gram = torch.zeros(width, width, dtype=torch.float64, device=rows.device)

    def add(self, rows: Tensor) -> None:
        """Add a batch of rows [M, C]."""
        centred = rows.to(self._reference.dtype) - self._reference
        with full_precision(rows.device):
            self._gram += centred.T @ centred
        self._sum += centred.sum(dim=0, dtype=torch.float64)
        self._count += len(rows)

    def moments(self) -> LayerMoments:
        """Return the moments about the mean, on the CPU."""
        shift = self._sum / self._count
        scatter = self._gram - torch.outer(self._sum, shift)
        return LayerMoments(
            count=torch.tensor(self._count, dtype=torch.float64),
            mean=(self._reference.double() + shift).cpu(),
            scatter=((scatter + scatter.T) / 2).cpu(),
        )


def _at_least_float32(rows: Tensor) -> torch.dtype:
    return torch.promote_types(rows.dtype, torch.float32)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Multiply matrices of float32 as such within the context: without autocast and, on CUDA, without TF32."""
    with torch.autocast(device.type, enabled=False):
        if device.type != "cuda":
            yield
            return
        # PyTorch has two interfaces to one setting, and refuses to read the older where the newer says otherwise.
        matmul: Any = torch.backends.cuda.matmul
        try:
            before, change = torch.get_float32_matmul_precision(), torch.set_float32_matmul_precision
            wanted = "highest"
        except RuntimeError:
            before, change = matmul.fp32_precision, partial(setattr, matmul, "fp32_precision")
            wanted = "ieee"
        if before == wanted:
            yield
            return
        change(wanted)
        try:
            yield
        finally:
            change(before)
