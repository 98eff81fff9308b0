"""The groups of a dense model: which of the coupled channels can be removed, and from which layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch_pruning as tp
from torch import nn

from cleanai_ray.graph.coupling import Coupled, Reached, coupled_groups, num_blocks
from cleanai_ray.graph.group import ChannelGroup, Member, Side
from cleanai_ray.graph.heads import head_axes
from cleanai_ray.graph.recurrent import RECURRENT

_COUPLED = (tp.ops.OPTYPE.DEPTHWISE_CONV, tp.ops.OPTYPE.MHA)


def find_groups(
    graph: tp.DependencyGraph, names: Mapping[nn.Module, str], ignored: Sequence[nn.Module]
) -> tuple[list[ChannelGroup], dict[str, str]]:
    """Return the groups that can be removed, and why others cannot, by the name of the first layer.

    Nothing is said of groups that reach the output or an ignored layer.

    Args:
        graph: torch-pruning's graph of the model.
        names: Names of the model's modules.
        ignored: Layers that keep their output width.
    """
    found: list[ChannelGroup] = []
    reasons: dict[str, str] = {}
    for coupled in coupled_groups(graph, ignored):
        if any(_keeps_width(graph, item.dep, ignored) for item in coupled.items):
            reason = _reason(graph, names, [item.dep.target for item in coupled.items], ignored)
            reasons |= {} if reason is None else {names[coupled.root]: reason}
            continue
        if coupled.is_lost:
            reasons[names[coupled.root]] = "its channels cannot be followed to the layers that read them"
        elif not any(_cuts_blocks_in_part(graph, names, item) for item in coupled.items):
            found.append(_describe(graph, names, coupled))
    return found, reasons


def every_group(graph: tp.DependencyGraph, names: Mapping[nn.Module, str]) -> list[ChannelGroup]:
    """Return the groups that could be removed if no layer were ignored, those inside attention last.

    Args:
        graph: torch-pruning's graph of the model, of `trace`.
        names: Names of the model's modules.
    """
    found, _ = find_groups(graph, names, ())
    return [*found, *(axis.group() for axis in head_axes(graph.attention, names))]


def _keeps_width(graph: tp.DependencyGraph, dependency: Any, ignored: Sequence[nn.Module]) -> bool:
    """Return whether a dimension reaches the output or shuffled channels, or belongs to an ignored layer."""
    if dependency.target.type == tp.ops.OPTYPE.OUTPUT:
        return True
    if not graph.is_out_channel_pruning_fn(dependency.handler):
        return False
    if isinstance(dependency.target.module, RECURRENT):
        return True
    return not dependency.target.outputs or dependency.target.module in ignored


def _reason(
    graph: Any, names: Mapping[nn.Module, str], reached: Sequence[Any], ignored: Sequence[nn.Module]
) -> str | None:
    """Return why what reaches some operations keeps its width; None if it is the output, or was asked to."""
    if any(isinstance(node.module, tp.ops._OutputOp) or node.module in ignored for node in reached):
        return None
    for node in reached:
        if node in graph.failed:
            return str(graph.failed[node])
        if isinstance(node.module, RECURRENT):
            return f"recurrent layer '{names[node.module]}' reads or computes its channels"
    ends = any(node.type == tp.ops.OPTYPE.OUTPUT for node in reached)
    return "its channels are shuffled, or cut into blocks or heads" if ends else None


def _cuts_blocks_in_part(graph: tp.DependencyGraph, names: Mapping[nn.Module, str], item: Reached) -> bool:
    """Return whether a layer with blocks reads the group as one of several inputs, so that blocks would differ."""
    node = item.dep.target
    if node.module not in names or num_blocks(node) == 1:
        return False
    width = graph.get_in_channels(node) if _side(graph, item.dep) == "in" else graph.get_out_channels(node)
    return len(item.channels) != width


def _describe(graph: tp.DependencyGraph, names: Mapping[nn.Module, str], coupled: Coupled) -> ChannelGroup:
    members = []
    for item in coupled.items:
        node = item.dep.target
        is_free = node.type == tp.ops.OPTYPE.PARAMETER
        name = graph._param_to_name[node.module] if is_free else names.get(node.module)
        if name is None or graph.get_out_channels(node) is None:
            continue  # An operation, or an activation with one parameter for all channels.
        members.append(
            Member(
                layer=name,
                side=_side(graph, item.dep),
                type=type(node.module).__name__,
                channels=np.asarray(item.channels, dtype=np.int64),
                roots=np.asarray(item.roots, dtype=np.int64),
            )
        )
    size, adjacent = coupled.units.layout()
    return ChannelGroup(
        name=names[coupled.root],
        num_channels=len(coupled.items[0].channels),
        num_blocks=size,
        members=tuple(members),
        whole_heads=adjacent,
    )


def _side(graph: tp.DependencyGraph, dependency: Any) -> Side:
    is_out = graph.is_out_channel_pruning_fn(dependency.handler)
    is_in = graph.is_in_channel_pruning_fn(dependency.handler)
    if (is_out and is_in) or dependency.target.type in _COUPLED:
        return "both"
    return "out" if is_out else "in"
