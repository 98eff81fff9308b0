"""Forward hooks on the layers whose channels are observed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from cleanai_ray.nn.attention import HeadChannels
from cleanai_ray.nn.modes import HookOwner

OBSERVED = (_ConvNd, nn.Linear, nn.MultiheadAttention, HeadChannels)
"""Module types whose inputs and outputs are observed."""

Self = TypeVar("Self", bound="LayerObserver")


class LayerObserver(HookOwner, ABC):
    """Observes every convolution, Linear and MultiheadAttention of a model while it is entered; leaves no hook behind.

    Args:
        model: The model; the caller runs it.
        outputs: Also observe what layers compute, and not only what they receive.
    """

    def __init__(self, model: nn.Module, *, outputs: bool = False) -> None:
        super().__init__()
        self._model = model
        self._outputs = outputs
        self._paused = False

    @abstractmethod
    def see(self, side: str, layer: str, activation: Tensor) -> None:
        """Add activations [samples, channels, positions] of a side, `inputs` or `outputs`, of a layer."""

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Observe nothing within the context."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def __enter__(self: Self) -> Self:
        for name, module in self._model.named_modules():
            if isinstance(module, OBSERVED):
                # What a layer receives is seen before the layer runs: it has just been computed, and is in the caches.
                self._handles.append(module.register_forward_pre_hook(self._before(name)))
                if self._outputs:
                    self._handles.append(module.register_forward_hook(self._after(name)))
        return self

    def _before(self, name: str) -> Any:
        @torch.no_grad()
        def observe(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if not self._paused:
                self.see("inputs", name, as_samples(module, inputs[0]))

        return observe

    def _after(self, name: str) -> Any:
        @torch.no_grad()
        def observe(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            if not self._paused:
                self.see("outputs", name, as_samples(module, output[0] if isinstance(output, tuple) else output))

        return observe


def as_samples(module: nn.Module, activation: Tensor) -> Tensor:
    """Return a view of activations as [samples, channels, positions], whatever their layout and type."""
    activation = activation.detach()
    if isinstance(module, _ConvNd):
        is_batch = activation.dim() == module.weight.dim()
        return activation.flatten(2) if is_batch else activation.flatten(1).unsqueeze(0)
    if isinstance(module, nn.MultiheadAttention) and not module.batch_first:
        activation = activation.transpose(0, 1)
    if activation.dim() == 1:
        activation = activation.unsqueeze(0)
    return activation.flatten(1, -2).transpose(1, 2) if activation.dim() > 2 else activation.unsqueeze(-1)
