"""The observer of a second pass, which knows the range of every layer and counts activations by bin, on the device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cleanai_ray.errors import CalibrationError
from cleanai_ray.statistics.histogram import ActivationHistograms, LayerHistogram, Ranges, count_in_bins
from cleanai_ray.statistics.observer import LayerObserver


class HistogramRecorder(LayerObserver):
    """Counts the activations of each channel by bin of its layer's range.

    Args:
        model: The model; the caller runs it.
        ranges: The range of every layer that is counted, by side and name.
        num_bins: Number of bins, k.
    """

    def __init__(self, model: nn.Module, ranges: Ranges, *, num_bins: int) -> None:
        super().__init__(model, outputs=bool(ranges["outputs"]))
        self._ranges = ranges
        self._num_bins = num_bins
        self._counts: dict[tuple[str, str], Tensor] = {}

    def see(self, side: str, layer: str, activation: Tensor) -> None:
        """Add the counts of a batch to those so far."""
        if layer not in self._ranges[side]:
            raise CalibrationError(f"the {side} of layer '{layer}' have no range to divide into bins")
        key = side, layer
        if key not in self._counts:
            size = activation.shape[1] * self._num_bins
            self._counts[key] = torch.zeros(size, dtype=torch.int64, device=activation.device)
        count_in_bins(activation, *self._ranges[side][layer], self._num_bins, self._counts[key])

    def histograms(self) -> ActivationHistograms:
        """Return what was counted so far.

        Raises:
            CalibrationError: When nothing ran.
        """
        if not self._counts:
            raise CalibrationError("the second pass of calibration counted nothing: no batch was run")
        sides: dict[str, dict[str, LayerHistogram]] = {"inputs": {}, "outputs": {}}
        for (side, layer), counts in self._counts.items():
            low, high = self._ranges[side][layer]
            sides[side][layer] = LayerHistogram(
                counts=counts.reshape(-1, self._num_bins).double().cpu(),
                low=torch.tensor(low, dtype=torch.float64),
                high=torch.tensor(high, dtype=torch.float64),
            )
        return ActivationHistograms(inputs=sides["inputs"], outputs=sides["outputs"])
