"""Per-channel sums over what layers received or computed during calibration; they can be merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cleanai_ray.display.tables import Displayed, Summary
from cleanai_ray.errors import CalibrationError
from cleanai_ray.statistics.histogram import (
    ActivationHistograms,
    LayerHistogram,
    Ranges,
    histogram_tensors,
    read_histogram,
)
from cleanai_ray.statistics.summary import layer_in_short, model_in_short, summary_of_statistics
from cleanai_ray.statistics.tensor_file import pack, unpack

_FORMAT = "cleanai-statistics/2"
_SIDES = ("inputs", "outputs")
_GRADIENTS = ("gradients", "squared_gradients")
_MAPPINGS = (*_SIDES, *_GRADIENTS)
_NUMBERS = ("threshold", "top_k", "num_gradient_samples")
_EXTREMA = {"minimum": torch.minimum, "maximum": torch.maximum}


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerStatistics:
    """Sums over the activations x[i,c,p] of one layer; all tensors are float64 of shape [C], on the CPU.

    Attributes:
        num_samples: Number of samples i, as a tensor of shape [].
        num_positions: Number of positions p over all samples, as a tensor of shape [].
        sum: Sum of x over samples and positions.
        sum_squares: Sum of x^2.
        sum_absolutes: Sum of |x|.
        sum_sample_means: Sum over samples of s[i,c], the mean of x over the positions of sample i.
        active_samples: Number of samples with s[i,c] > threshold.
        positive_positions: Number of positions with x > 0.
        top_samples: Number of samples in which the channel is among the k strongest of its layer by s[i,c]: fewer than
            k others are as strong. k is the calibration's `top_k`, or the number of the layer's channels less one where
            that is smaller.
        minimum: Smallest x.
        maximum: Largest x.
        histogram: Counts of x in bins of the layer's range; None unless a second pass made them.
    """

    num_samples: Tensor
    num_positions: Tensor
    sum: Tensor
    sum_squares: Tensor
    sum_absolutes: Tensor
    sum_sample_means: Tensor
    active_samples: Tensor
    positive_positions: Tensor
    top_samples: Tensor
    minimum: Tensor
    maximum: Tensor
    histogram: LayerHistogram | None = None

    @property
    def num_channels(self) -> int:
        """Number of channels, C."""
        return self.sum.numel()

    @property
    def mean(self) -> Tensor:
        """Mean activation over samples and positions, [C]."""
        return self.sum / self.num_positions

    @property
    def root_mean_square(self) -> Tensor:
        """Norm of each channel's activations over the square root of their number, [C]."""
        return (self.sum_squares / self.num_positions).sqrt()

    @property
    def standard_deviation(self) -> Tensor:
        """Population standard deviation over samples and positions, [C]."""
        return (self.sum_squares / self.num_positions - self.mean.square()).clamp_min(0).sqrt()

    @property
    def largest_magnitude(self) -> Tensor:
        """M: the largest |x| of the whole layer, []."""
        return torch.maximum(self.maximum, -self.minimum).max()

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest x of the whole layer."""
        return float(self.minimum.min()), float(self.maximum.max())

    def select(self, channels: Tensor) -> LayerStatistics:
        """Return the statistics of some of the channels, in the given order.

        `top_samples` and the bins of the histogram compare a channel with its whole layer, and stay as they are.
        """
        chosen: dict[str, Any] = {
            name: value if value.dim() == 0 else value[channels] for name, value in self.tensors().items()
        }
        if self.histogram is not None:
            chosen["histogram"] = self.histogram.select(channels)
        return LayerStatistics(**chosen)

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by name, without those of the histogram."""
        return {name: getattr(self, name) for name in _TENSORS}

    def __add__(self, other: LayerStatistics) -> LayerStatistics:
        values: dict[str, Any] = {}
        for name, value in self.tensors().items():
            combine = _EXTREMA.get(name, torch.add)
            values[name] = combine(value, getattr(other, name))
        if self.histogram is not None and other.histogram is not None:
            values["histogram"] = self.histogram + other.histogram
        elif self.histogram is not other.histogram:
            raise CalibrationError("statistics cannot be merged: only one side has histograms; allowed: both or none")
        return LayerStatistics(**values)

    def __repr__(self) -> str:
        return f"LayerStatistics({layer_in_short(self)})"


_TENSORS = tuple(item.name for item in fields(LayerStatistics) if item.name != "histogram")


@dataclass(frozen=True, kw_only=True, eq=False)
class ActivationStatistics(Displayed):
    """Statistics of a model's activations. Those of two sets of samples add up to those of their union: `a + b`.

    Attributes:
        inputs: Statistics of what each layer receives, by module name.
        outputs: Statistics of what each layer computes, by module name.
        threshold: Mean activation above which a sample counts as active.
        top_k: How many channels of a layer count as the strongest of a sample.
        gradients: Sum over batches of batch size times |gradient of the batch's mean loss|, by parameter name; empty
            unless asked for.
        squared_gradients: Sum over samples of the square of the gradient of the sample's loss, by parameter name; empty
            unless asked for.
        num_gradient_samples: Number of samples that `gradients` and `squared_gradients` sum over.
    """

    inputs: Mapping[str, LayerStatistics]
    outputs: Mapping[str, LayerStatistics]
    threshold: float = 0.0
    top_k: int = 10
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    squared_gradients: Mapping[str, Tensor] = field(default_factory=dict)
    num_gradient_samples: int = 0

    def __add__(self, other: ActivationStatistics) -> ActivationStatistics:
        """Merge with the statistics of other samples of the same model.

        Raises:
            CalibrationError: When the two were not taken from the same layers in the same way.
        """
        if not isinstance(other, ActivationStatistics):
            return NotImplemented
        for name in ("threshold", "top_k"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise CalibrationError(
                    f"statistics with {name} {mine} and {theirs} cannot be merged; allowed: the same"
                )
        for name in _MAPPINGS:
            difference = set(getattr(self, name)) ^ set(getattr(other, name))
            if difference:
                raise CalibrationError(f"statistics cannot be merged: only one side has {name} of '{min(difference)}'")
        for name in _SIDES:
            for layer, value in getattr(self, name).items():
                widths = value.num_channels, getattr(other, name)[layer].num_channels
                if widths[0] != widths[1]:
                    raise CalibrationError(
                        f"statistics cannot be merged: the {name} of layer '{layer}' have {widths[0]} and {widths[1]} "
                        "channels"
                    )
        sums: dict[str, Any] = {
            name: {key: value + getattr(other, name)[key] for key, value in getattr(self, name).items()}
            for name in _MAPPINGS
        }
        number = self.num_gradient_samples + other.num_gradient_samples
        return replace(self, **sums, num_gradient_samples=number)

    def with_histograms(self, histograms: ActivationHistograms) -> ActivationStatistics:
        """Return the statistics together with histograms that were counted over their `ranges`.

        Raises:
            CalibrationError: When the histograms are of other layers, or were counted over other ranges or samples.
        """
        sides: dict[str, Any] = {}
        for side, ranges in self.ranges.items():
            mine, counted = getattr(self, side), getattr(histograms, side)
            if counted.keys() != ranges.keys():
                raise CalibrationError(f"the histograms are not those of the {side} that the statistics have")
            for layer, limits in ranges.items():
                found = float(counted[layer].low), float(counted[layer].high)
                if found != limits:
                    raise CalibrationError(
                        f"the histogram of the {side} of layer '{layer}' was counted over {list(found)}; allowed: the "
                        f"range of the statistics, {list(limits)}"
                    )
                number = int(mine[layer].num_positions)
                if not (counted[layer].counts.sum(dim=1) == number).all():
                    raise CalibrationError(
                        f"the histogram of the {side} of layer '{layer}' does not count the {number} activations a "
                        "channel that the statistics saw; allowed: the same samples in both passes"
                    )
            sides[side] = {layer: replace(value, histogram=counted[layer]) for layer, value in mine.items()}
        return replace(self, **sides)

    @property
    def ranges(self) -> Ranges:
        """Smallest and largest activation of every layer, by side and name: the ranges of its histograms."""
        return {side: {name: value.range for name, value in getattr(self, side).items()} for side in _SIDES}

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        first = next(iter((*self.inputs.values(), *self.outputs.values())))
        return int(first.num_samples)

    def summary(self) -> Summary:
        """Return a table of the layers, which notebooks show in place of the statistics."""
        return summary_of_statistics(self)

    def __repr__(self) -> str:
        return f"ActivationStatistics({model_in_short(self)})"

    def select(
        self, kept_inputs: Mapping[str, np.ndarray], kept_outputs: Mapping[str, np.ndarray]
    ) -> ActivationStatistics:
        """Return the statistics as a pruned network's layers see them: only the kept channels, without gradients."""
        return ActivationStatistics(
            inputs={name: _select(value, kept_inputs.get(name)) for name, value in self.inputs.items()},
            outputs={name: _select(value, kept_outputs.get(name)) for name, value in self.outputs.items()},
            threshold=self.threshold,
            top_k=self.top_k,
        )

    def to_bytes(self) -> bytes:
        """Serialise without loss, as a safetensors file."""
        tensors: dict[str, Tensor] = {}
        histograms: dict[str, list[str]] = {}
        for side in _SIDES:
            layers = getattr(self, side)
            histograms[side] = [layer for layer, value in layers.items() if value.histogram is not None]
            for layer, value in layers.items():
                tensors |= {f"{side}/{layer}/{name}": tensor for name, tensor in value.tensors().items()}
            for layer in histograms[side]:
                tensors |= histogram_tensors(f"{side}/{layer}", layers[layer].histogram)
        for name in _GRADIENTS:
            tensors |= {f"{name}/{key}": value for key, value in getattr(self, name).items()}
        header = {name: getattr(self, name) for name in _NUMBERS}
        order = {name: list(getattr(self, name)) for name in _MAPPINGS}
        return pack(tensors, {"format": _FORMAT, **header, **order, "histograms": histograms})

    @staticmethod
    def from_bytes(content: bytes) -> ActivationStatistics:
        """Restore what `to_bytes` wrote.

        Raises:
            ArtifactError: When the bytes are something else.
        """
        tensors, header = unpack(content, "activation statistics", _FORMAT)

        def layer(side: str, name: str) -> LayerStatistics:
            prefix = f"{side}/{name}"
            values = {key: tensors[f"{prefix}/{key}"] for key in _TENSORS}
            counted = name in header["histograms"][side]
            return LayerStatistics(**values, histogram=read_histogram(prefix, tensors) if counted else None)

        mappings: dict[str, Any] = {side: {name: layer(side, name) for name in header[side]} for side in _SIDES}
        for name in _GRADIENTS:
            mappings[name] = {key: tensors[f"{name}/{key}"] for key in header[name]}
        return ActivationStatistics(**mappings, **{name: header[name] for name in _NUMBERS})

    def __reduce__(self) -> tuple[Any, ...]:
        return ActivationStatistics.from_bytes, (self.to_bytes(),)


def _select(value: LayerStatistics, channels: np.ndarray | None) -> LayerStatistics:
    return value if channels is None else value.select(torch.as_tensor(channels, dtype=torch.long))
