"""The mergeable value: per-channel sums of what layers received or computed during calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cleanai_ray.errors import CalibrationError
from cleanai_ray.statistics.tensor_file import pack, unpack

_FORMAT = "cleanai-statistics/1"
_EXTREMA = {"minimum": torch.minimum, "maximum": torch.maximum}


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerStatistics:
    """Sums over the activations x[i,c,p] of one layer; all tensors are float64 of shape [C], on the CPU.

    Attributes:
        num_samples: Samples i that were seen, as a tensor of shape [].
        num_positions: Positions p over all samples, as a tensor of shape [].
        sum: Sum of x over samples and positions.
        sum_squares: Sum of x^2.
        sum_absolutes: Sum of |x|.
        sum_sample_means: Sum over samples of s[i,c], the mean of x over the positions of sample i.
        active_samples: Number of samples with s[i,c] > threshold.
        positive_positions: Number of positions with x > 0.
        minimum: Smallest x.
        maximum: Largest x.
    """

    num_samples: Tensor
    num_positions: Tensor
    sum: Tensor
    sum_squares: Tensor
    sum_absolutes: Tensor
    sum_sample_means: Tensor
    active_samples: Tensor
    positive_positions: Tensor
    minimum: Tensor
    maximum: Tensor

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

    def select(self, channels: Tensor) -> LayerStatistics:
        """Return the statistics of some of the channels, in the given order."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        chosen = {name: value if value.dim() == 0 else value[channels] for name, value in values.items()}
        return LayerStatistics(**chosen)

    def __add__(self, other: LayerStatistics) -> LayerStatistics:
        values = {}
        for item in fields(self):
            combine = _EXTREMA.get(item.name, torch.add)
            values[item.name] = combine(getattr(self, item.name), getattr(other, item.name))
        return LayerStatistics(**values)


@dataclass(frozen=True, kw_only=True, eq=False)
class ActivationStatistics:
    """What calibration saw. The statistics of a union of samples is the sum of the parts' statistics.

    Attributes:
        inputs: Statistics of what each layer receives, by module name.
        outputs: Statistics of what each layer computes, by module name.
        threshold: Mean activation above which a sample counts as active.
        gradients: Sum over batches of batch size times |gradient of the batch's mean loss|, by parameter name; empty
            unless asked for.
        num_gradient_samples: Samples that `gradients` sums over.
    """

    inputs: Mapping[str, LayerStatistics]
    outputs: Mapping[str, LayerStatistics]
    threshold: float = 0.0
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    num_gradient_samples: int = 0

    def __add__(self, other: ActivationStatistics) -> ActivationStatistics:
        """Merge with the statistics of other samples of the same model.

        Raises:
            CalibrationError: When the two were not taken from the same layers in the same way.
        """
        if not isinstance(other, ActivationStatistics):
            return NotImplemented
        if self.threshold != other.threshold:
            raise CalibrationError(
                f"statistics with threshold {self.threshold} and {other.threshold} cannot be merged; allowed: the same"
            )
        for name in ("inputs", "outputs", "gradients"):
            difference = set(getattr(self, name)) ^ set(getattr(other, name))
            if difference:
                raise CalibrationError(f"statistics cannot be merged: only one side has {name} of '{min(difference)}'")
        for name in ("inputs", "outputs"):
            for layer, value in getattr(self, name).items():
                widths = value.num_channels, getattr(other, name)[layer].num_channels
                if widths[0] != widths[1]:
                    raise CalibrationError(
                        f"statistics cannot be merged: the {name} of layer '{layer}' have {widths[0]} and {widths[1]} "
                        "channels"
                    )
        return ActivationStatistics(
            inputs={name: value + other.inputs[name] for name, value in self.inputs.items()},
            outputs={name: value + other.outputs[name] for name, value in self.outputs.items()},
            threshold=self.threshold,
            gradients={name: value + other.gradients[name] for name, value in self.gradients.items()},
            num_gradient_samples=self.num_gradient_samples + other.num_gradient_samples,
        )

    @property
    def num_samples(self) -> int:
        """Samples seen."""
        first = next(iter((*self.inputs.values(), *self.outputs.values())))
        return int(first.num_samples)

    def select(
        self, kept_inputs: Mapping[str, np.ndarray], kept_outputs: Mapping[str, np.ndarray]
    ) -> ActivationStatistics:
        """Return the statistics as a pruned network's layers see them: only the kept channels. Drops gradients."""
        return ActivationStatistics(
            inputs={name: _select(value, kept_inputs.get(name)) for name, value in self.inputs.items()},
            outputs={name: _select(value, kept_outputs.get(name)) for name, value in self.outputs.items()},
            threshold=self.threshold,
        )

    def to_bytes(self) -> bytes:
        """Serialise without loss, as a safetensors file."""
        tensors: dict[str, Tensor] = {}
        for side in ("inputs", "outputs"):
            for layer, value in getattr(self, side).items():
                tensors |= {f"{side}/{layer}/{item.name}": getattr(value, item.name) for item in fields(value)}
        tensors |= {f"gradients/{name}": value for name, value in self.gradients.items()}
        order = {side: list(getattr(self, side)) for side in ("inputs", "outputs", "gradients")}
        header = {"threshold": self.threshold, "num_gradient_samples": self.num_gradient_samples, **order}
        return pack(tensors, {"format": _FORMAT, **header})

    @staticmethod
    def from_bytes(content: bytes) -> ActivationStatistics:
        """Restore what `to_bytes` wrote.

        Raises:
            ArtifactError: When the bytes are something else.
        """
        tensors, header = unpack(content, "activation statistics", _FORMAT)

        def layers(side: str) -> dict[str, LayerStatistics]:
            names = [item.name for item in fields(LayerStatistics)]
            return {
                layer: LayerStatistics(**{name: tensors[f"{side}/{layer}/{name}"] for name in names})
                for layer in header[side]
            }

        return ActivationStatistics(
            inputs=layers("inputs"),
            outputs=layers("outputs"),
            threshold=header["threshold"],
            gradients={name: tensors[f"gradients/{name}"] for name in header["gradients"]},
            num_gradient_samples=header["num_gradient_samples"],
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return ActivationStatistics.from_bytes, (self.to_bytes(),)


def _select(value: LayerStatistics, channels: np.ndarray | None) -> LayerStatistics:
    return value if channels is None else value.select(torch.as_tensor(channels, dtype=torch.long))
