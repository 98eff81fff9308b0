"""Forward hooks that reduce activations to per-channel sums on the device, without a host synchronisation a batch."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cleanai_ray.errors import CalibrationError
from cleanai_ray.statistics.channel_statistics import ActivationStatistics, LayerStatistics

OBSERVED = (nn.Conv2d, nn.Linear, nn.MultiheadAttention)
"""Module types whose inputs and outputs are recorded."""


class ActivationRecorder:
    """Records every Conv2d, Linear and MultiheadAttention of a model while it is entered; leaves no hook behind.

    Args:
        model: The model; the caller runs it.
        threshold: Mean activation above which a sample counts as active.
        outputs: Record what layers compute, too, and not only what they receive.
    """

    def __init__(self, model: nn.Module, *, threshold: float = 0.0, outputs: bool = False) -> None:
        self._model = model
        self._threshold = threshold
        self._outputs = outputs
        self._sums: dict[tuple[str, str], dict[str, Tensor]] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> ActivationRecorder:
        for name, module in self._model.named_modules():
            if isinstance(module, OBSERVED):
                self._handles.append(module.register_forward_hook(self._hook(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, name: str) -> Any:
        @torch.no_grad()
        def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            self._add(("inputs", name), _sums(as_samples(module, inputs[0]), self._threshold))
            if self._outputs:
                first = output[0] if isinstance(output, tuple) else output
                self._add(("outputs", name), _sums(as_samples(module, first), self._threshold))

        return record

    def _add(self, key: tuple[str, str], new: dict[str, Tensor]) -> None:
        known = self._sums.get(key)
        if known is None:
            self._sums[key] = new
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
            value = LayerStatistics(**{key: tensor.cpu() for key, tensor in sums.items()})
            if not torch.isfinite(value.sum_squares).all():
                raise CalibrationError(f"the {side} of layer '{name}' are not finite on the calibration samples")
            sides[side][name] = value
        return ActivationStatistics(inputs=sides["inputs"], outputs=sides["outputs"], threshold=self._threshold)


def as_samples(module: nn.Module, activation: Tensor) -> Tensor:
    """Return activations as [samples, channels, positions], whatever their layout."""
    activation = activation.detach()
    if isinstance(module, nn.Conv2d):
        return activation.flatten(2) if activation.dim() == 4 else activation.flatten(1).unsqueeze(0)
    if isinstance(module, nn.MultiheadAttention) and not module.batch_first:
        activation = activation.transpose(0, 1)
    if activation.dim() == 1:
        activation = activation.unsqueeze(0)
    return activation.flatten(1, -2).transpose(1, 2) if activation.dim() > 2 else activation.unsqueeze(-1)


def _sums(activation: Tensor, threshold: float) -> dict[str, Tensor]:
    samples, _, positions = activation.shape
    activation = activation.float()
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
        "minimum": activation.amin(dim=(0, 2)).double(),
        "maximum": activation.amax(dim=(0, 2)).double(),
    }
