"""Modules without parameters that have one value, or one kernel, a channel: frozen norms, blurring filters.

torch-pruning takes them for operations, and leaves them at their width. What counts as one is found by its buffers and
widths, and by one pass; whether the smaller model is right is left to the trials of its groups.
"""

from __future__ import annotations

from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from cleanai_ray.nn.copying import leaving_no_trace
from cleanai_ray.nn.modes import evaluation_mode

_WIDTHS = ("num_features", "num_channels", "channels", "in_channels", "out_channels", "groups")
"""Attributes of modules that repeat their width."""


def channelwise_width(module: nn.Module) -> int | None:
    """Return the number of channels of a module of this kind, or None if it is none."""
    if tp.ops.module2type(module) != tp.ops.OPTYPE.ELEMENTWISE or next(module.parameters(), None) is not None:
        return None
    if any(True for child in module.children() for _ in child.buffers()):
        return None
    buffers = [value for value in module.buffers(recurse=False) if value.numel() > 1]
    widths = {_channels_of(value) for value in buffers} - {1}
    if widths:
        widths |= {value for name in _WIDTHS if isinstance(value := getattr(module, name, None), int)}
    return widths.pop() if len(widths) == 1 else None


def _channels_of(value: Tensor) -> int:
    """Return the length of the dimension of a buffer that holds channels: its first, or its second behind a one."""
    return int(value.shape[_dimension(value)])


def _dimension(value: Tensor) -> int:
    return 1 if value.dim() > 1 and value.shape[0] == 1 else 0


def cut_channelwise(module: nn.Module, channels: list[int]) -> None:
    """Cut channels out of a module of this kind, in place."""
    width = channelwise_width(module)
    assert width is not None
    for name, value in list(module.named_buffers(recurse=False)):
        if value.numel() > 1 and _channels_of(value) == width:
            gone = set(channels)
            stay = torch.as_tensor([each for each in range(width) if each not in gone], device=value.device)
            setattr(module, name, value.index_select(_dimension(value), stay))
    for name in _WIDTHS:
        if getattr(module, name, None) == width:
            setattr(module, name, width - len(channels))


class ChannelwisePruner(tp.function.BasePruningFunc):
    """What torch-pruning has to know of such a module."""

    def prune_out_channels(self, layer: nn.Module, idxs: Any) -> nn.Module:
        """Cut channels, in place."""
        cut_channelwise(layer, list(idxs))
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: nn.Module) -> int | None:
        """Return the width."""
        return channelwise_width(layer)

    get_in_channels = get_out_channels


def channelwise_classes(model: nn.Module, inputs: Tensor) -> list[type[nn.Module]]:
    """Return the classes of such modules of which all that ran have their channels in a dimension of what they read.

    Args:
        model: The model; it is left as it is.
        inputs: Its input.
    """
    candidates = [module for module in model.modules() if channelwise_width(module) is not None]
    if not candidates:
        return []
    fits: dict[type[nn.Module], bool] = {}

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        pair = [value for value in (*args[:1], output) if isinstance(value, Tensor) and value.dim() > 1]
        width = channelwise_width(module)
        ok = len(pair) == 2 and any(all(value.shape[axis] == width for value in pair) for axis in (1, -1))
        fits[type(module)] = fits.get(type(module), True) and ok

    handles = [module.register_forward_hook(hook) for module in candidates]
    try:
        with evaluation_mode(model), leaving_no_trace(model), torch.no_grad():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [kind for kind, ok in fits.items() if ok]
