"""Histograms of each channel's activations over its layer's range: counts that can be merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cleanai_ray.errors import CalibrationError
from cleanai_ray.statistics.cache_blocks import cache_sized_blocks
from cleanai_ray.statistics.tensor_file import pack, unpack

_FORMAT = "cleanai-histograms/1"
Ranges = Mapping[str, Mapping[str, tuple[float, float]]]
"""Smallest and largest activation of each layer, by side (`inputs`, `outputs`) and module name."""

_MAX_INDICES = 1 << 18
"""Activations that are binned at a time on a CPU: 2 MiB of float64, 1 MiB of int32; elsewhere 16 times that."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerHistogram:
    """Activations x[i,c,p] of one layer, counted in k equal bins of [low, high]; float64, on the CPU.

    Attributes:
        counts: Number of activations of each channel in each bin, [C, k].
        low: Lower end of the first bin, [].
        high: Upper end of the last bin, [].
    """

    counts: Tensor
    low: Tensor
    high: Tensor

    @property
    def num_bins(self) -> int:
        """Number of bins, k."""
        return self.counts.shape[1]

    def select(self, channels: Tensor) -> LayerHistogram:
        """Return the histogram of some of the channels, in the given order; the bins stay those of the layer."""
        return LayerHistogram(counts=self.counts[channels], low=self.low, high=self.high)

    def __add__(self, other: LayerHistogram) -> LayerHistogram:
        if self.counts.shape != other.counts.shape:
            shapes = " and ".join(str(tuple(value.counts.shape)) for value in (self, other))
            raise CalibrationError(f"histograms of shape {shapes} cannot be merged; allowed: the same")
        if self.low != other.low or self.high != other.high:
            ranges = " and ".join(f"[{value.low:g}, {value.high:g}]" for value in (self, other))
            raise CalibrationError(
                f"histograms over the ranges {ranges} cannot be merged; allowed: the same, of merged statistics"
            )
        return LayerHistogram(counts=self.counts + other.counts, low=self.low, high=self.high)

    def __repr__(self) -> str:
        limits = f"[{float(self.low):.4g}, {float(self.high):.4g}]"
        return f"LayerHistogram({len(self.counts)} channels, {self.num_bins} bins of {limits})"


@dataclass(frozen=True, kw_only=True, eq=False)
class ActivationHistograms:
    """The histograms of a model. Over one range, the histograms of two sets of samples add up to those of their union.

    Attributes:
        inputs: Histograms of what each layer receives, by module name.
        outputs: Histograms of what each layer computes, by module name.
    """

    inputs: Mapping[str, LayerHistogram]
    outputs: Mapping[str, LayerHistogram]

    def __add__(self, other: ActivationHistograms) -> ActivationHistograms:
        """Merge with the histograms of other samples of the same model.

        Raises:
            CalibrationError: When the two were not counted in the same layers and bins.
        """
        if not isinstance(other, ActivationHistograms):
            return NotImplemented
        for name in ("inputs", "outputs"):
            difference = set(getattr(self, name)) ^ set(getattr(other, name))
            if difference:
                raise CalibrationError(f"histograms cannot be merged: only one side has {name} of '{min(difference)}'")
        return ActivationHistograms(
            inputs={name: value + other.inputs[name] for name, value in self.inputs.items()},
            outputs={name: value + other.outputs[name] for name, value in self.outputs.items()},
        )

    def to_bytes(self) -> bytes:
        """Serialise without loss, as a safetensors file."""
        tensors: dict[str, Tensor] = {}
        for side in ("inputs", "outputs"):
            for layer, value in getattr(self, side).items():
                tensors |= histogram_tensors(f"{side}/{layer}", value)
        order = {side: list(getattr(self, side)) for side in ("inputs", "outputs")}
        return pack(tensors, {"format": _FORMAT, **order})

    @staticmethod
    def from_bytes(content: bytes) -> ActivationHistograms:
        """Restore what `to_bytes` wrote.

        Raises:
            ArtifactError: When the bytes are something else.
        """
        tensors, header = unpack(content, "activation histograms", _FORMAT)
        sides = {
            side: {layer: read_histogram(f"{side}/{layer}", tensors) for layer in header[side]}
            for side in ("inputs", "outputs")
        }
        return ActivationHistograms(**sides)

    def __reduce__(self) -> tuple[Any, ...]:
        return ActivationHistograms.from_bytes, (self.to_bytes(),)

    def __repr__(self) -> str:
        return f"ActivationHistograms({len(self.inputs)} layers of inputs, {len(self.outputs)} of outputs)"


def histogram_tensors(prefix: str, value: LayerHistogram) -> dict[str, Tensor]:
    """Return the tensors of a histogram by the names they have in a file."""
    return {f"{prefix}/histogram/{name}": getattr(value, name) for name in ("counts", "low", "high")}


def read_histogram(prefix: str, tensors: Mapping[str, Tensor]) -> LayerHistogram:
    """Return the histogram whose tensors have these names."""
    return LayerHistogram(**{name: tensors[f"{prefix}/histogram/{name}"] for name in ("counts", "low", "high")})


def count_in_bins(activation: Tensor, low: float, high: float, num_bins: int, totals: Tensor) -> None:
    """Add to `totals` how many activations of each channel lie in each bin of [low, high].

    Bin j holds low + j w <= x < low + (j + 1) w, with w = (high - low) / k; x = high belongs to the last bin, and
    activations outside of the range to the nearest. Where low = high, all are in the first bin. Nothing waits for the
    device. The bin numbers of all activations take memory, so they are computed for a block of samples and channels at
    a time.

    Args:
        activation: Activations [samples, channels, positions].
        low: Smallest activation of the layer.
        high: Largest activation of the layer.
        num_bins: Number of bins, k.
        totals: Counts so far, int64 of shape [channels * k], on the device of the activations.
    """
    _, num_channels, _ = activation.shape
    offsets = torch.arange(num_channels, dtype=torch.int32, device=activation.device)[:, None] * num_bins
    width = (high - low) / num_bins
    one = totals.new_ones(())
    for samples, channels in cache_sized_blocks(
        activation, _MAX_INDICES * (1 if activation.device.type == "cpu" else 16)
    ):
        place = activation[samples, channels].double()
        if low != 0:
            place -= low
        if width > 0:
            place /= width
        index = place.clamp_(0, num_bins - 1).int().add_(offsets[channels]).flatten()
        totals.index_add_(0, index, one.expand(len(index)))
