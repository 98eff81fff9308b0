"""Observers that reduce activations to per-channel sums on the device, without a host synchronisation a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.errors import CalibrationError
from cleanai_ray.statistics.channel_statistics import ActivationStatistics, LayerStatistics
from cleanai_ray.statistics.observer import LayerObserver


class ActivationRecorder(LayerObserver):
    """Records what layers receive, and compute.

    Args:
        model: The model; the caller runs it.
        threshold: Mean activation above which a sample counts as active.
        top_k: How many channels of a layer count as the strongest of a sample.
        outputs: Record what layers compute, too, and not only what they receive.
    """

    def __init__(self, model: nn.Module, *, threshold: float = 0.0, top_k: int = 10, outputs: bool = False) -> None:
        super().__init__(model, outputs=outputs)
        self._threshold = threshold
        self._top_k = top_k
        self._sums: dict[tuple[str, str], dict[str, Tensor]] = {}

    def see(self, side: str, layer: str, activation: Tensor) -> None:
        """Add the sums of a batch to those so far."""
        new = _sums(activation, self._threshold, self._top_k)
        known = self._sums.get((side, layer))
        if known is None:
            self._sums[side, layer] = new
            return
        for name, value in new.items():
            if name == "minimum":
                known[name] = torch.minimum(known[name], value)
            elif name == "maximum":
                known[name] = torch.maximum(known[name], value)
            else:
                known[name] = known[name] + value

    def statistics(self) -> ActivationStatistics:
        """Return what was recorded so far.

        Raises:
            CalibrationError: When nothing ran, or a layer's activations were not finite.
        """
        if not self._sums:
            raise CalibrationError(
                "calibration recorded nothing: no batch was run, or the model has no layer to observe"
            )
        sides: dict[str, dict[str, LayerStatistics]] = {"inputs": {}, "outputs": {}}
        for (side, name), sums in self._sums.items():
            tensors: dict[str, Any] = {key: tensor.cpu() for key, tensor in sums.items()}
            value = LayerStatistics(**tensors)
            if not torch.isfinite(value.sum_squares).all():
                raise CalibrationError(f"the {side} of layer '{name}' are not finite on the calibration samples")
            sides[side][name] = value
        return ActivationStatistics(
            inputs=sides["inputs"], outputs=sides["outputs"], threshold=self._threshold, top_k=self._top_k
        )


def _sums(activation: Tensor, threshold: float, top_k: int) -> dict[str, Tensor]:
    samples, _, positions = activation.shape
    sums = activation.sum(dim=2).double()
    means = sums / positions
    squares = torch.linalg.vector_norm(activation, ord=2, dim=2).double().square()
    return {
        "num_samples": sums.new_tensor(float(samples)),
        "num_positions": sums.new_tensor(float(samples * positions)),
        "sum": sums.sum(dim=0),
        "sum_squares": squares.sum(dim=0),
        "sum_absolutes": torch.linalg.vector_norm(activation, ord=1, dim=2).double().sum(dim=0),
        "sum_sample_means": means.sum(dim=0),
        "active_samples": (means > threshold).sum(dim=0).double(),
        "positive_positions": (activation > 0).sum(dim=(0, 2)).double(),
        "top_samples": _among_strongest(means, top_k).sum(dim=0).double(),
        "minimum": activation.amin(dim=(0, 2)).double(),
        "maximum": activation.amax(dim=(0, 2)).double(),
    }


def _among_strongest(means: Tensor, top_k: int) -> Tensor:
    """Return which channels are among the k strongest of each sample, [samples, channels], bool.

    Channels that are no stronger than the first one after the k do not count: which of equals would come first is not
    up to the activations, and silent channels must not count for want of others. k is at most all channels but one:
    where all are among the strongest, none is.
    """
    if means.shape[1] == 1:
        return torch.ones_like(means, dtype=torch.bool)
    number = min(top_k, means.shape[1] - 1)
    return means > means.topk(number + 1, dim=1).values[:, -1:]
