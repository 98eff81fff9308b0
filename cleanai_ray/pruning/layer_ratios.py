"""The channel ratios that a study gives to single groups of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cleanai_ray.errors import PruningError
from cleanai_ray.graph.graph import ChannelGroup


def match_layer_ratios(groups: Sequence[ChannelGroup], ratios: Mapping[str, float]) -> dict[str, float]:
    """Return the ratio of every group whose output layers match a prefix: the longest prefix, then the least ratio."""
    matched: dict[str, float] = {}
    used: set[str] = set()
    for group in groups:
        found = []
        for member in group.members:
            prefixes = [prefix for prefix in ratios if f"{member.layer}.".startswith(f"{prefix}.")]
            if member.side != "in" and prefixes:
                longest = max(prefixes, key=len)
                found.append(ratios[longest])
                used.add(longest)
        if found:
            matched[group.name] = min(found)
    unused = sorted(set(ratios) - used)
    if unused:
        raise PruningError(
            f"layer_ratios names '{unused[0]}', and no prunable layer's name starts with it; prunable layers: "
            f"{', '.join(group.name for group in groups[:12])}"
        )
    return matched
