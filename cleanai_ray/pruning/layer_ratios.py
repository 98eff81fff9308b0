"""The channel ratios that a study gives to single groups of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cleanai_ray.errors import PruningError
from cleanai_ray.graph.graph import ChannelGroup


def match_layer_ratios(groups: Sequence[ChannelGroup], ratios: Mapping[str, float]) -> dict[str, float]:
    """Return the ratio of every group whose output layers match a prefix: the longest prefix, then the least ratio."""
    matched, used = _match(groups, ratios)
    unused = sorted(set(ratios) - used)
    if unused:
        raise PruningError(
            f"layer_ratios names '{unused[0]}', and no prunable layer's name starts with it; prunable layers: "
            f"{', '.join(group.name for group in groups[:12])}"
        )
    return matched


def ratios_left(
    ratios: Mapping[str, float], dense: Sequence[ChannelGroup], left: Sequence[ChannelGroup]
) -> dict[str, float]:
    """Return the ratios without those that name nothing but groups that have meanwhile been found to need their width.

    Args:
        ratios: Channel ratio by prefix of module names.
        dense: All groups that the dense model has.
        left: Those of them that can still be narrowed.
    """
    gone = _match(dense, ratios)[1] - _match(left, ratios)[1]
    return {prefix: ratio for prefix, ratio in ratios.items() if prefix not in gone}


def _match(groups: Sequence[ChannelGroup], ratios: Mapping[str, float]) -> tuple[dict[str, float], set[str]]:
    """Return the ratio of every group that a prefix matches, and the prefixes that do."""
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
    return matched, used
