"""Sums over the samples of one layer, reduced with plain operations: on processors, and as the reference elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cleanai_ray.statistics.cache_blocks import cache_sized_blocks
from cleanai_ray.statistics.channel_statistics import LayerStatistics

SUMS = (
    "sum",
    "sum_squares",
    "sum_absolutes",
    "sum_sample_means",
    "active_samples",
    "positive_positions",
    "top_samples",
)
"""Names of the sums, in the order of `LayerSums.totals`."""

_AT_ONCE = {"cpu": 1 << 19}
"""Activations that are reduced at a time, by device: 2 MiB, and as much again for intermediate results."""

_AT_ONCE_ELSEWHERE = 1 << 26


@dataclass
class LayerSums:
    """Sums over the samples of a layer, on the device.

    Attributes:
        num_samples: Samples.
        num_positions: Positions over all samples.
        totals: The sums of `SUMS`, float64 of shape [7, C].
        minimum: Smallest activations, [C].
        maximum: Largest activations, [C].
    """

    num_samples: int
    num_positions: int
    totals: Tensor
    minimum: Tensor
    maximum: Tensor

    def __add__(self, other: LayerSums) -> LayerSums:
        """Return the sums over the samples of both."""
        device = self.totals.device
        return LayerSums(
            num_samples=self.num_samples + other.num_samples,
            num_positions=self.num_positions + other.num_positions,
            totals=self.totals + other.totals.to(device),
            minimum=torch.minimum(self.minimum, other.minimum.to(device)),
            maximum=torch.maximum(self.maximum, other.maximum.to(device)),
        )

    def value(self) -> LayerStatistics:
        """Return the statistics, on the CPU."""
        tensors: dict[str, Any] = dict(zip(SUMS, self.totals.cpu().clone().unbind(), strict=True))
        for name in ("num_samples", "num_positions"):
            tensors[name] = torch.tensor(float(getattr(self, name)), dtype=torch.float64)
        return LayerStatistics(**tensors, minimum=self.minimum.double().cpu(), maximum=self.maximum.double().cpu())


def sums_of(activation: Tensor, threshold: float, top_k: int) -> LayerSums:
    """Return the sums of activations [samples, channels, positions], reduced in float32 and added up in float64."""
    num_samples, num_channels, num_positions = activation.shape
    rows = activation.new_empty(6, num_samples, num_channels, dtype=torch.float32)
    for block in cache_sized_blocks(activation, _AT_ONCE.get(activation.device.type, _AT_ONCE_ELSEWHERE)):
        _reduce(activation[block].float(), *rows[(slice(None), *block)])
    sums, norms, absolutes, positive = rows[:4].double()
    means = sums / num_positions
    totals = torch.stack(
        [
            sums,
            norms.square(),
            absolutes,
            means,
            (means > threshold).double(),
            positive,
            _among_strongest(means, top_k).double(),
        ]
    ).sum(dim=1)
    return LayerSums(
        num_samples=num_samples,
        num_positions=num_samples * num_positions,
        totals=totals,
        minimum=rows[4].amin(dim=0),
        maximum=rows[5].amax(dim=0),
    )


def _reduce(
    part: Tensor, sums: Tensor, norms: Tensor, absolutes: Tensor, positive: Tensor, low: Tensor, high: Tensor
) -> None:
    """Reduce activations [samples, channels, positions] over positions, into tensors [samples, channels].

    Where no activation is negative, absolute values need not be computed. That is checked on CPUs only: elsewhere the
    check would wait for the device. The results are the same. Counts are exact up to 2^24 positions.
    """
    torch.sum(part, dim=2, out=sums)
    torch.linalg.vector_norm(part, ord=2, dim=2, out=norms)
    torch.amin(part, dim=2, out=low)
    torch.amax(part, dim=2, out=high)
    signs = part.sign()
    if part.device.type == "cpu" and bool((low >= 0).all()):
        absolutes.copy_(sums)
    else:
        torch.sum(part.abs(), dim=2, out=absolutes)
        signs.clamp_min_(0)
    torch.sum(signs, dim=2, out=positive)


def _among_strongest(means: Tensor, top_k: int) -> Tensor:
    """Return a mask of the channels that are among the k strongest of each sample, bool [samples, channels].

    A channel that only ties with the next one after the k strongest does not count: the activations do not say which of
    equals comes first, and silent channels must not count because there are no others. k is at most the number of
    channels less one: if all were among the strongest, the count would say nothing.
    """
    if means.shape[1] == 1:
        return torch.ones_like(means, dtype=torch.bool)
    number = min(top_k, means.shape[1] - 1)
    return means > means.topk(number + 1, dim=1).values[:, -1:]
