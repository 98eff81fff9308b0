"""From a model to torch-pruning's dependency graph; what it cannot follow is refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from cleanai_ray.errors import PruningError

_UNTRACEABLE = {
    "torchvision.models.shufflenetv2.InvertedResidual": "shuffles channels between groups",
    "torchvision.models.swin_transformer.ShiftedWindowAttention": "cuts feature maps into shifted windows",
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2": "cuts feature maps into shifted windows",
}
"""Blocks in which torch-pruning loses track of channels: it fails, or fills the memory with index tables."""


def trace(model: nn.Module, example_inputs: Tensor) -> tp.DependencyGraph:
    """Return the dependency graph of a model.

    Raises:
        PruningError: When the model holds a block that cannot be followed, or cannot be traced.
    """
    for name, module in model.named_modules():
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        if kind in _UNTRACEABLE:
            raise PruningError(
                f"{type(model).__name__} cannot be pruned: its layer '{name}' ({type(module).__name__}) "
                f"{_UNTRACEABLE[kind]}, which torch-pruning's tracing does not follow"
            )
    try:
        with torch.enable_grad(), _quiet():
            return tp.DependencyGraph().build_dependency(model, example_inputs=example_inputs)
    except Exception as error:
        raise PruningError(f"the model cannot be traced with the example inputs: {error}") from error


def single_input(example_inputs: Any) -> Tensor:
    """Return the one tensor that a model is called with.

    Raises:
        PruningError: When there are several, or it is something else.
    """
    inputs = [example_inputs] if isinstance(example_inputs, Tensor) else list(example_inputs)
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
        raise PruningError(f"example_inputs holds {len(inputs)} values; allowed: one tensor, or a tuple of one")
    return inputs[0]


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
