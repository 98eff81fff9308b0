"""Recurrent layers as the dependency graph sees them: one operation each, whatever of their outputs goes on.

They keep their width, and so does what they read. Their steps are no part of the graph, which would be long and whose
index mappings would be wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from cleanai_ray.nn.calls import tensors_in

RECURRENT = (nn.RNNBase, nn.RNNCellBase)


class KeepingPruner(tp.function.BasePruningFunc):
    """What torch-pruning has to know of a layer that is never cut."""

    def prune_out_channels(self, layer: nn.Module, idxs: Any) -> nn.Module:
        """Leave the layer as it is."""
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: nn.Module) -> None:
        """Return None, as operations do."""
        return

    get_in_channels = get_out_channels


class _OneStep(torch.autograd.Function):
    """Outputs that autograd takes for one function of the inputs."""

    @staticmethod
    def forward(ctx: Any, num_outputs: int, *values: Tensor) -> Any:
        return tuple(value.clone() for value in values[:num_outputs])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError


@contextmanager
def recurrent_as_one(model: nn.Module) -> Iterator[None]:
    """Let every recurrent layer be one operation of the autograd graph; gradients cannot be taken through it."""
    found = [module for module in model.modules() if isinstance(module, RECURRENT)]
    handles = [module.register_forward_hook(_joined, with_kwargs=True) for module in found]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _joined(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    given = tensors_in([*map(_unpacked, args), *kwargs.values()])
    inputs = [value for value in given if value.is_floating_point()] + [next(module.parameters())]
    packed = output[0] if isinstance(output, tuple) and isinstance(output[0], PackedSequence) else None
    outputs = tensors_in([packed.data, *output[1:]] if packed is not None else output)
    values = iter(_OneStep.apply(len(outputs), *(value.detach() for value in outputs), *inputs))
    if packed is None:
        return _like(output, values)
    return (packed._replace(data=next(values)), *_like(output[1:], values))


def _unpacked(value: Any) -> Any:
    return value.data if isinstance(value, PackedSequence) else value


def _like(value: Any, values: Iterator[Tensor]) -> Any:
    """Return tensors, nested in tuples as others are."""
    return next(values) if isinstance(value, Tensor) else tuple(_like(item, values) for item in value)
