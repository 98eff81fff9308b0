"""A dependency group: channels that exist in several layers at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Side = Literal["out", "in", "both"]
"""Which dimension of a layer a group cuts; `both` for norms, depthwise convolutions and attention."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """One dimension of one layer that a group cuts.

    Attributes:
        layer: Module (or parameter) name.
        side: The dimension.
        type: Class name of the module.
        channels: Indices in the layer's dimension, [n]; a flattened input has several for one channel of the group.
        roots: The channel of the group that each index belongs to, [n].
    """

    layer: str
    side: Side
    type: str
    channels: np.ndarray
    roots: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelGroup:
    """Channels that exist in several layers at once, and go from all of them or from none.

    Attributes:
        name: Name of the layer whose output channels number the group's.
        num_channels: Channels of the group, in its present width.
        num_blocks: Equal blocks that must stay equally wide (groups of a convolution, heads); 1 where there are none.
        members: Every layer dimension the group cuts.
        whole_heads: Whether a unit is a head, of `num_blocks` channels that follow one another, and not the same
            position in each of the blocks.
    """

    name: str
    num_channels: int
    num_blocks: int
    members: tuple[Member, ...]
    whole_heads: bool = False

    @property
    def num_units(self) -> int:
        """What can be chosen one by one: the channels of one block, or whole heads."""
        return self.num_channels // self.num_blocks

    @property
    def unit_of(self) -> np.ndarray:
        """The unit that each channel belongs to, [num_channels]."""
        channels = np.arange(self.num_channels)
        return channels // self.num_blocks if self.whole_heads else channels % self.num_units

    def expand(self, units: np.ndarray) -> np.ndarray:
        """Return the channels of the chosen units."""
        return np.flatnonzero(np.isin(self.unit_of, units))
