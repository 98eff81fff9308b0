"""Channels cut out of layers, by the layers' names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
import torch_pruning as tp
from torch import nn

from cleanai_ray.graph.channelwise import channelwise_width, cut_channelwise
from cleanai_ray.graph.group import ChannelGroup, Side
from cleanai_ray.graph.tying import shared_parameters, tie_again
from cleanai_ray.nn.open_layers import narrow_packed

Cuts = dict[tuple[str, Side], np.ndarray]
"""Channels that go from a dimension of a layer or free parameter, in present numbering, ascending."""


def cuts_of(groups: Iterable[ChannelGroup], removed: Mapping[str, Sequence[int] | np.ndarray]) -> Cuts:
    """Return what goes from each layer when channels of groups go.

    Args:
        groups: Groups at their present width.
        removed: The channels that go, by group name.
    """
    found: Cuts = {}
    for group in groups:
        gone = np.asarray(removed.get(group.name, ()), dtype=np.int64)
        for member in group.members if len(gone) else ():
            key, channels = (member.layer, member.side), member.channels[np.isin(member.roots, gone)]
            found[key] = np.union1d(found[key], channels) if key in found else np.unique(channels)
    return {key: channels for key, channels in found.items() if len(channels)}


def cut(model: nn.Module, cuts: Cuts, parameters: Mapping[str, int]) -> None:
    """Cut channels out of a model, in place, and of the gradients with the weights.

    Args:
        model: The model.
        cuts: What goes from each layer.
        parameters: The dimension in which each free parameter is cut, by name.

    Raises:
        UntiedError: When layers share a parameter of which they would lose different channels; see `tying`.
    """
    shared = shared_parameters(model)
    for (name, side), channels in cuts.items():
        if name in parameters:
            _cut_parameter(model, name, channels, parameters[name])
        else:
            cut_layer(model.get_submodule(name), side, channels)
    tie_again(model, shared)
    _finish_surgery(model)


def cut_layer(layer: nn.Module, side: Side, channels: np.ndarray) -> None:
    """Cut channels out of one layer, in place."""
    if channelwise_width(layer) is not None:
        cut_channelwise(layer, channels.tolist())
        return
    kind = tp.ops.module2type(layer)
    if isinstance(layer, tp.ops.TORCH_CONV):  # Cut to one channel a group, another convolution looks depthwise.
        kind = tp.ops.OPTYPE.DEPTHWISE_CONV if side == "both" else tp.ops.OPTYPE.CONV
    pruner = tp.function.PrunerBox[kind]
    pruner.pruning_dim = -1  # Layer norms read it.
    prune = pruner.prune_in_channels if side == "in" else pruner.prune_out_channels
    prune(layer, channels.tolist())


def _cut_parameter(model: nn.Module, name: str, channels: np.ndarray, dimension: int) -> None:
    owner, _, leaf = name.rpartition(".")
    module, parameter = model.get_submodule(owner), model.get_parameter(name)
    kept = np.delete(np.arange(parameter.shape[dimension]), channels)
    index = torch.as_tensor(kept, device=parameter.device)
    smaller = nn.Parameter(parameter.detach().index_select(dimension, index), requires_grad=parameter.requires_grad)
    if parameter.grad is not None:
        smaller.grad = parameter.grad.index_select(dimension, index)
    setattr(module, leaf, smaller)
    _update_shapes(module, parameter.shape[dimension], len(kept))


def _update_shapes(module: nn.Module, width: int, kept: int) -> None:
    """Update the shapes that a module with a parameter of its own gives to it: a width among ones, as (64, 1, 1)."""
    for name, value in vars(module).items():
        is_shape = isinstance(value, (tuple, list)) and all(type(size) is int for size in value)
        if is_shape and sorted(value) == [1] * (len(value) - 1) + [width]:
            setattr(module, name, type(value)([kept if size == width else 1 for size in value]))


def _finish_surgery(model: nn.Module) -> None:
    """Update attributes that repeat a width."""
    for module in model.modules():
        narrow_packed(module)
        if type(module).__name__ == "VisionTransformer" and hasattr(module, "conv_proj"):
            module.hidden_dim = module.conv_proj.out_channels  # type: ignore[union-attr]
