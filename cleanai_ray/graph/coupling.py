"""Coupled channels: where each output channel of a layer is found again, and which of them meet."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch_pruning as tp
from torch import nn
from torch_pruning._helpers import _HybridIndex

from cleanai_ray.graph.recurrent import RECURRENT
from cleanai_ray.graph.splitting import sizes_of_parts

_MOST_INDICES = 2**20


@dataclass(eq=False)
class Reached:
    """One dimension of a layer or an operation that channels were followed to.

    Attributes:
        dep: torch-pruning's dependency that led there first.
        channels: Indices in that dimension, in the order of discovery.
        roots: The channel of the first layer that each index belongs to.
    """

    dep: Any
    channels: list[int] = field(default_factory=list)
    roots: list[int] = field(default_factory=list)
    _root_of: dict[int, int] = field(default_factory=dict)

    def add(self, indices: Sequence[Any], units: Units) -> list[Any]:
        """Note indices, couple the roots that meet in one of them, and return the new ones."""
        new = []
        for index in indices:
            known = self._root_of.get(index.idx)
            if known is None:
                self._root_of[index.idx] = index.root_idx
                self.channels.append(index.idx)
                self.roots.append(index.root_idx)
                new.append(index)
            else:
                units.join(known, index.root_idx)
        return new

    def join_positions(self, width: int, units: Units) -> None:
        """Couple the roots of the same position in every block of a width."""
        for channel, root in self._root_of.items():
            first = self._root_of.get(channel % width)
            if first is not None:
                units.join(first, root)


class Units:
    """A partition of channels into units that are removed as a whole (a union-find).

    Args:
        num_channels: Number of channels, each a unit of its own at first.
    """

    def __init__(self, num_channels: int) -> None:
        self._parents = list(range(num_channels))

    def join(self, one: int, other: int) -> None:
        """Make one unit of those of two channels."""
        self._parents[self._top(other)] = self._top(one)

    def _top(self, channel: int) -> int:
        while self._parents[channel] != channel:
            self._parents[channel] = self._parents[self._parents[channel]]
            channel = self._parents[channel]
        return channel

    def layout(self) -> tuple[int, bool]:
        """Return the channels in a unit, and whether these are neighbours.

        A unit has one channel at the same position of equal blocks, or neighbouring channels, whichever makes the
        smaller units; several of the units that were joined may have to become one for that.
        """
        number = len(self._parents)
        tops = [self._top(channel) for channel in range(number)]
        stride = math.gcd(number, *(channel - top for channel, top in enumerate(tops)))
        adjacent = next(
            size
            for size in range(1, number + 1)
            if number % size == 0 and all(channel // size == top // size for channel, top in enumerate(tops))
        )
        return (adjacent, True) if adjacent < number // stride else (number // stride, False)


@dataclass(frozen=True, eq=False)
class Coupled:
    """All that must be removed with the output channels of one layer.

    Attributes:
        root: The layer.
        items: The dimensions, the layer's own first.
        units: Which of its channels can only be removed together.
        is_lost: True if the index mappings led to channels that do not exist.
    """

    root: nn.Module
    items: tuple[Reached, ...]
    units: Units
    is_lost: bool


def coupled_groups(graph: tp.DependencyGraph, ignored: Sequence[nn.Module]) -> Iterator[Coupled]:
    """Yield the groups of a graph, in the order of their first layers.

    It differs from torch-pruning's own search in that it ends (an index is followed once, however often it is reached)
    and notes which channels of the first layer meet.
    """
    seen: set[Any] = set(ignored)
    for module in list(graph.module2node):
        if module in seen or not isinstance(module, (tp.ops.TORCH_CONV, nn.Linear)):
            continue
        group = _follow(graph, module)
        reached = [item.dep.target.module for item in group.items if graph.is_out_channel_pruning_fn(item.dep.handler)]
        seen.update(reached)
        if not any(each in ignored for each in reached):
            yield group


def _follow(graph: tp.DependencyGraph, module: nn.Module) -> Coupled:
    node, pruner = graph.module2node[module], graph.get_pruner_of_module(module)
    cut, width = pruner.prune_out_channels, pruner.get_out_channels(module)
    first = tp.dependency.Dependency(cut, cut, source=node, target=node)
    units, items = Units(width), {(node, cut): Reached(first)}
    indices = [_HybridIndex(idx=channel, root_idx=channel) for channel in range(width)]
    items[node, cut].add(indices, units)
    visited, is_lost = set(), False
    waiting = [(node, cut, indices)]
    while waiting and not is_lost:
        node, cut, indices = waiting.pop()
        visited.add(node)
        for dep in node.dependencies:
            if not dep.is_triggered_by(cut) or _is_constant(dep.target):
                continue
            mapped = _mapped(dep, indices)
            if mapped is not None and not mapped:
                continue
            if mapped is None or _is_lost(graph, dep, mapped):
                is_lost = True
                break
            mapped = _all_chunks(dep.target, mapped)
            item = items.setdefault((dep.target, dep.handler), Reached(dep))
            new = item.add(mapped, units)
            if new or dep.target not in visited:
                waiting.append((dep.target, dep.handler, new if dep.target in visited else mapped))
    for item in () if is_lost else items.values():
        _join_blocks(graph, item, units)
    return Coupled(module, tuple(items.values()), units, is_lost)


def _is_constant(node: Any) -> bool:
    """Return whether an operation computes something from a layer's own parameters alone."""
    return not node.inputs and node.type in (tp.ops.OPTYPE.RESHAPE, tp.ops.OPTYPE.EXPAND)


def _mapped(dep: Any, indices: list[Any]) -> list[Any] | None:
    """Return indices of one operation in the next; None if the mapping fails, or might multiply them without end."""
    try:
        for mapping in dep.index_mapping:
            if len(indices) * getattr(mapping, "_stride", 1) > _MOST_INDICES:
                return None
            if mapping is not None:
                indices = mapping(indices)
    except (ArithmeticError, LookupError, TypeError, ValueError):
        return None
    return indices


def _is_lost(graph: tp.DependencyGraph, dep: Any, indices: Sequence[Any]) -> bool:
    """Return whether an index mapping is wrong: it leads to channels that do not exist, or can follow none of them.

    What has no channels of its own, as an operation, has at most as many indices as a sample has values there. Around
    a circle of operations, a wrong mapping may multiply the indices without end.
    """
    node = dep.target
    if isinstance(node.module, RECURRENT):
        return False
    is_read = not graph.is_out_channel_pruning_fn(dep.handler)
    most = graph.get_in_channels(node) if is_read else graph.get_out_channels(node)
    if node.type == tp.ops.OPTYPE.OUTPUT:
        most = None
    if most is None:
        around = [node.grad_fn, *(function for function, _ in getattr(node.grad_fn, "next_functions", ()))]
        shapes = [each.shape for function in around for each in getattr(function, "_input_metadata", ())]
        most = max((math.prod(shape) for shape in shapes), default=0) * max(1, len(node.outputs))
    return any(index.root_idx is None or not 0 <= index.idx < most for index in indices)


def _all_chunks(node: Any, indices: list[Any]) -> list[Any]:
    """Return indices with the same positions of all parts of a split, which `chunk` would else cut elsewhere."""
    sizes = sizes_of_parts(node)
    if len(sizes) < 2 or len(set(sizes)) > 1 or not sizes[0]:
        return indices
    found = {
        (index.idx % sizes[0] + part * sizes[0], index.root_idx): None
        for index in indices
        for part in range(len(sizes))
    }
    return list(dict.fromkeys([*indices, *(_HybridIndex(idx=idx, root_idx=root) for idx, root in found)]))


def _join_blocks(graph: tp.DependencyGraph, item: Reached, units: Units) -> None:
    """Keep the blocks of a layer equally wide: heads, and groups of a convolution or a norm."""
    node = item.dep.target
    number = num_blocks(node)
    if number > 1:
        reads = not graph.is_out_channel_pruning_fn(item.dep.handler)
        width = graph.get_in_channels(node) if reads else graph.get_out_channels(node)
        item.join_positions(width // number, units)


def num_blocks(node: Any) -> int:
    """Return the number of equal blocks that the channels of a layer are in; 1 if they are in none."""
    module = node.module
    if isinstance(module, nn.MultiheadAttention):
        return module.num_heads
    if isinstance(module, nn.GroupNorm):
        return module.num_groups
    if node.type == tp.ops.OPTYPE.DEPTHWISE_CONV:
        return 1
    return getattr(module, "groups", 1)
