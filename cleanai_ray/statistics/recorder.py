"""Observers that reduce activations to per-channel sums on the device, without a host synchronisation a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.errors import CalibrationError
from cleanai_ray.statistics.cache_blocks import cache_sized_blocks
from cleanai_ray.statistics.channel_statistics import ActivationStatistics, LayerStatistics
from cleanai_ray.statistics.observer import LayerObserver

_SUMS = (
    "sum",
    "sum_squares",
    "sum_absolutes",
    "sum_sample_means",
    "active_samples",
    "positive_positions",
    "top_samples",
)
"""Names of the sums, in the order of `_BatchSums.totals`."""

_AT_ONCE = {"cpu": 1 << 19}
"""Activations that are reduced at a time, by device: 2 MiB, and as much again for intermediate results."""

_AT_ONCE_ELSEWHERE = 1 << 26


@dataclass
class _BatchSums:
    """Sums over the samples of a layer, on the device.

    Attributes:
        num_samples: Samples.
        num_positions: Positions over all samples.
        totals: The sums of `_SUMS`, float64 of shape [7, C].
        minimum: Smallest activations, [C].
        maximum: Largest activations, [C].
    """

    num_samples: int
    num_positions: int
    totals: Tensor
    minimum: Tensor
    maximum: Tensor

    def add(self, other: _BatchSums) -> None:
        """Add the sums over other samples."""
        self.num_samples += other.num_samples
        self.num_positions += other.num_positions
        self.totals += other.totals
        self.minimum = torch.minimum(self.minimum, other.minimum)
        self.maximum = torch.maximum(self.maximum, other.maximum)

    def value(self) -> LayerStatistics:
        """Return the statistics, on the CPU."""
        tensors: dict[str, Any] = dict(zip(_SUMS, self.totals.cpu().clone().unbind(), strict=True))
        for name in ("num_samples", "num_positions"):
            tensors[name] = torch.tensor(float(getattr(self, name)), dtype=torch.float64)
        return LayerStatistics(**tensors, minimum=self.minimum.double().cpu(), maximum=self.maximum.double().cpu())


class ActivationRecorder(LayerObserver):
    """Records statistics of what layers receive, and of what they compute.

    Args:
        model: The model; the caller runs it.
        threshold: Mean activation above which a sample counts as active.
        top_k: How many channels of a layer count as the strongest of a sample.
        outputs: Also record what layers compute, and not only what they receive.
    """

    def __init__(self, model: nn.Module, *, threshold: float = 0.0, top_k: int = 10, outputs: bool = False) -> None:
        super().__init__(model, outputs=outputs)
        self._threshold = threshold
        self._top_k = top_k
        self._sums: dict[tuple[str, str], _BatchSums] = {}

    def see(self, side: str, layer: str, activation: Tensor) -> None:
        """Add the sums of a batch to those so far."""
        new = _sums(activation, self._threshold, self._top_k)
        known = self._sums.setdefault((side, layer), new)
        if known is not new:
            known.add(new)

    def statistics(self) -> ActivationStatistics:
        """Return the statistics of the batches so far.

        Raises:
            CalibrationError: When nothing ran, or a layer's activations were not finite.
        """
        if not self._sums:
            raise CalibrationError(
                "calibration recorded nothing: no batch was run, or the model has no layer to observe"
            )
        sides: dict[str, dict[str, LayerStatistics]] = {"inputs": {}, "outputs": {}}
        for (side, name), sums in self._sums.items():
            value = sums.value()
            if not torch.isfinite(value.sum_squares).all():
                raise CalibrationError(f"the {side} of layer '{name}' are not finite on the calibration samples")
            sides[side][name] = value
        return ActivationStatistics(
            inputs=sides["inputs"], outputs=sides["outputs"], threshold=self._threshold, top_k=self._top_k
        )


def _sums(activation: Tensor, threshold: float, top_k: int) -> _BatchSums:
    num_samples, num_channels, num_positions = activation.shape
    rows = activation.new_empty(6, num_samples, num_channels)
    for block in cache_sized_blocks(activation, _AT_ONCE.get(activation.device.type, _AT_ONCE_ELSEWHERE)):
        _reduce(activation[block], *rows[(slice(None), *block)])
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
    return _BatchSums(
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
