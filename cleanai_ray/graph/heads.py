"""The groups inside attention: whole heads, query and key dimensions, and value dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import nn

from cleanai_ray.graph.attention import Attention
from cleanai_ray.graph.group import ChannelGroup, Member, Side
from cleanai_ray.nn.attention import HeadChannels, HeadProduct, OpenAttention

Kind = Literal["heads", "query_key", "values"]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Channels that go from one dimension of one layer, in present numbering."""

    layer: str
    side: Side
    channels: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadAxis:
    """One way to narrow an attention module. Its channels are numbered apart from those of the module's other axes.

    Attributes:
        name: Name of the group.
        kind: `heads`: whole heads, from the layers of queries, keys and values, and the one that reads them;
            `query_key`: a dimension of the queries and keys of every head; `values`: one of the values of every head.
        attention: The module.
        names: Names of the layers.
        head_dim: Channels that a head counts for: the value dimensions of the dense model.
    """

    name: str
    kind: Kind
    attention: Attention
    names: Mapping[nn.Module, str]
    head_dim: int

    @property
    def num_channels(self) -> int:
        """The number of channels: of all heads, or dimensions of one."""
        if self.kind == "heads":
            return self.attention.num_heads * self.head_dim
        product = self._opened.heads
        return product.query_dim if self.kind == "query_key" else product.value_dim

    @property
    def _opened(self) -> OpenAttention:
        assert self.attention.opened is not None
        return self.attention.opened

    def layers(self) -> Iterator[tuple[nn.Module, Side, int, int]]:
        """Yield every layer that the axis cuts, the dimension, its width per head, and where its first head begins."""
        attention, opened = self.attention, self.attention.opened
        heads, (query, key, value) = attention.num_heads, attention.inputs
        query_dim, value_dim = query.out_features // heads, value.out_features // heads
        if self.kind == "heads" and opened is not None:
            yield opened.heads, "out", value_dim, 0
        if self.kind != "values":
            if opened is not None:
                yield opened.query, "both", query_dim, 0
                yield opened.key, "both", query_dim, 0
            yield query, "out", query_dim, 0
            yield key, "out", query_dim, 0
        if self.kind != "query_key":
            if opened is not None:
                yield opened.value, "both", value_dim, 0
            yield value, "out", value_dim, 0
            yield attention.output, "in", value_dim, 0
        if self.kind == "query_key":
            yield self._opened.heads, "in", query_dim, 0
        if self.kind == "values":
            yield self._opened.heads, "in", value_dim, heads * query_dim

    def group(self) -> ChannelGroup:
        """Return the group at its present width.

        The places where queries, keys and values pass by are members of the groups of their dimensions alone, so that
        these can be named apart from whole heads.
        """
        layers = [each for each in self.layers() if self.kind != "heads" or not isinstance(each[0], HeadChannels)]
        return ChannelGroup(
            name=self.name,
            num_channels=self.num_channels,
            num_blocks=self.head_dim if self.kind == "heads" else 1,
            members=tuple(self._member(*layer) for layer in layers),
            whole_heads=self.kind == "heads",
        )

    def _member(self, layer: nn.Module, side: Side, width: int, first: int) -> Member:
        head, place = self._places(width)
        if self.kind == "heads":
            channels, roots = head * width + place * width // self._most(width), self._heads_roots(head, place, width)
        else:
            channels, roots = head * width + place, place
        return Member(
            layer=self.names[layer], side=side, type=type(layer).__name__, channels=first + channels, roots=roots
        )

    def _most(self, width: int) -> int:
        return max(width, self.head_dim) if self.kind == "heads" else width

    def _places(self, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Return every head and place in it; a head that has fewer dimensions than it counts for has some twice."""
        most = self._most(width)
        channels = np.arange(self.attention.num_heads * most)
        return channels // most, channels % most

    def _heads_roots(self, head: np.ndarray, place: np.ndarray, width: int) -> np.ndarray:
        return head * self.head_dim + place * self.head_dim // self._most(width)

    def cuts(self, channels: Sequence[int] | np.ndarray) -> list[Cut]:
        """Return what goes from each layer when channels of the group go."""
        gone = np.unique(np.asarray(channels, dtype=np.int64))
        found = []
        for layer, side, width, first in self.layers():
            if self.kind == "heads":
                heads, places = np.unique(gone // self.head_dim), np.arange(width)
            else:
                heads, places = np.arange(self.attention.num_heads), gone
            rows = (heads[:, None] * width + places).ravel()
            found.append(Cut(layer=self.names[layer], side=side, channels=first + rows))
        return found

    def narrow(self, channels: Sequence[int] | np.ndarray) -> None:
        """Update the widths that the module repeats, once channels are gone from its layers."""
        opened = self.attention.opened
        if opened is None:
            return
        gone, product = len(channels), opened.heads
        if self.kind == "heads":
            product.num_heads -= gone // self.head_dim
            opened.drop_heads(np.unique(np.asarray(channels) // self.head_dim).tolist())
        elif self.kind == "query_key":
            product.query_dim -= gone
        else:
            product.value_dim -= gone
        for place, width in (
            (opened.query, product.query_dim),
            (opened.key, product.query_dim),
            (opened.value, product.value_dim),
        ):
            place.num_channels = product.num_heads * width


def head_axes(attention: Sequence[Attention], names: Mapping[nn.Module, str]) -> list[HeadAxis]:
    """Return the ways to narrow attention modules.

    The queries and keys of a head that are normalised together, or rotated in pairs, keep their dimensions.
    """
    found = []
    for each in attention:
        opened = each.opened
        kinds: list[tuple[Kind, nn.Module]] = [("heads", each.inputs[0] if opened is None else opened.heads)]
        if opened is not None:
            kinds += [] if opened.normalises_queries else [("query_key", opened.query)]
            kinds.append(("values", opened.value))
        for kind, layer in kinds:
            axis = HeadAxis(name=names[layer], kind=kind, attention=each, names=names, head_dim=each.head_dim)
            found.append(axis)
    return found


def width_of(layer: object, dimension: str) -> int | None:
    """Return the width of a part of attention without weights; None if it is something else."""
    if isinstance(layer, HeadChannels):
        return layer.num_channels
    if isinstance(layer, HeadProduct):
        dims = layer.value_dim if dimension == "out" else layer.query_dim + layer.value_dim
        return layer.num_heads * dims
    return None
