"""Observers that reduce activations to per-channel sums on the device, without a host synchronisation a batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cleanai_ray.errors import CalibrationError
from cleanai_ray.statistics.channel_statistics import ActivationStatistics, LayerStatistics
from cleanai_ray.statistics.fused_sums import FusedSums, open_fused_sums
from cleanai_ray.statistics.layer_sums import LayerSums, sums_of
from cleanai_ray.statistics.observer import LayerObserver


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
        self._sums: dict[tuple[str, str], LayerSums] = {}
        self._fused: dict[torch.device, FusedSums | None] = {}

    def see(self, side: str, layer: str, activation: Tensor) -> None:
        """Add the sums of a batch to those so far."""
        device = activation.device
        if device not in self._fused:
            self._fused[device] = open_fused_sums(device, self._threshold, self._top_k)
        fused = self._fused[device]
        if fused is not None and fused.accepts(activation):
            fused.add((side, layer), activation)
        else:
            _add(self._sums, (side, layer), sums_of(activation, self._threshold, self._top_k))

    def statistics(self) -> ActivationStatistics:
        """Return the statistics of the batches so far.

        Raises:
            CalibrationError: When nothing ran, or a layer's activations were not finite.
        """
        found = dict(self._sums)
        for fused in filter(None, self._fused.values()):
            for key, sums in fused.sums().items():
                _add(found, key, sums)
        if not found:
            raise CalibrationError(
                "calibration recorded nothing: no batch was run, or the model has no layer to observe"
            )
        sides: dict[str, dict[str, LayerStatistics]] = {"inputs": {}, "outputs": {}}
        for (side, name), sums in found.items():
            value = sums.value()
            if not torch.isfinite(value.sum_squares).all():
                raise CalibrationError(f"the {side} of layer '{name}' are not finite on the calibration samples")
            sides[side][name] = value
        return ActivationStatistics(
            inputs=sides["inputs"], outputs=sides["outputs"], threshold=self._threshold, top_k=self._top_k
        )


def _add(known: dict[tuple[str, str], LayerSums], key: tuple[str, str], new: LayerSums) -> None:
    known[key] = known[key] + new if key in known else new
