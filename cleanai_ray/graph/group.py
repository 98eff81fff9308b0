"""A dependency group: channels that exist in several layers at once, and can only be removed together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Side = Literal["out", "in", "both"]
"""The dimension of a layer that a group cuts; `both` for norms, depthwise convolutions and attention."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """One dimension of one layer that a group cuts.

    Attributes:
        layer: Module (or parameter) name.
        side: The dimension.
        type: Class name of the module.
        channels: Indices in the layer's dimension, [n]; a flattened input has several per channel of the group.
        roots: The channel of the group that each index belongs to, [n].
    """

    layer: str
    side: Side
    type: str
    channels: np.ndarray
    roots: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelGroup:
    """Channels that exist in several layers at once, and are removed from all of them or from none.

    Attributes:
        name: Name of the layer whose output channels number the group's.
        num_channels: Channels of the group at its present width.
        num_blocks: Equal blocks that must stay equally wide (groups of a convolution, heads); 1 if there are none.
        members: Every layer dimension the group cuts.
        whole_heads: True if a unit is a head, which is `num_blocks` adjacent channels, and not one position in each of
            the blocks.
    """

    name: str
    num_channels: int
    num_blocks: int
    members: tuple[Member, ...]
    whole_heads: bool = False

    @property
    def num_units(self) -> int:
        """The number of units that can be removed one by one: positions of a block, or whole heads."""
        return self.num_channels // self.num_blocks

    @property
    def unit_of(self) -> np.ndarray:
        """The unit that each channel belongs to, [num_channels]."""
        channels = np.arange(self.num_channels)
        return channels // self.num_blocks if self.whole_heads else channels % self.num_units

    def expand(self, units: np.ndarray) -> np.ndarray:
        """Return the channels of the chosen units."""
        return np.flatnonzero(np.isin(self.unit_of, units))

    def whole_units(self, channels: np.ndarray) -> np.ndarray:
        """Return channels together with all others of their units."""
        return self.expand(np.unique(self.unit_of[channels]))


def inseparable(groups: Iterable[ChannelGroup]) -> dict[str, str]:
    """Return why groups whose channels are a single unit keep their width, by name.

    Such are those of a convolution with one input channel in each of its groups, but several outputs.
    """
    reason = "all its channels are coupled, by a convolution in groups or a norm, so that none can go by itself"
    return {group.name: reason for group in groups if group.num_units == 1 < group.num_channels}


def without(group: ChannelGroup, gone: np.ndarray, cuts: Mapping[tuple[str, Side], np.ndarray]) -> ChannelGroup:
    """Return a group at its width after a cut, all in the numbering after it.

    Args:
        group: The group before the cut.
        gone: Those of its channels that went, whole units of it, ascending.
        cuts: All that went from the layers, of this group and of others, ascending.
    """
    members = []
    for member in group.members:
        cut = cuts.get((member.layer, member.side), np.empty(0, dtype=np.int64))
        stay = ~np.isin(member.channels, cut)
        channels, roots = member.channels[stay], member.roots[stay]
        members.append(
            replace(
                member,
                channels=channels - np.searchsorted(cut, channels),
                roots=roots - np.searchsorted(gone, roots),
            )
        )
    return replace(group, num_channels=group.num_channels - len(gone), members=tuple(members))
