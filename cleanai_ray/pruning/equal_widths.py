"""Groups that keep the same number of channels, as configurations that know one width for all layers need them.

Such groups are narrowed as one: the least important unit of each goes at the same time. Where one of them must keep its
width, all do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from torch import Tensor, nn

from cleanai_ray.errors import PruningError
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.graph.group import ChannelGroup

_MOST_NAMES = 12


def equal_groups(graph: ChannelGraph, dense: nn.Module, patterns: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the names of the groups of a graph that stay equally wide, such as keep their width among them.

    A pattern may match only groups of removed blocks.

    Args:
        graph: The graph, at full width, of the dense model or of that without some blocks.
        dense: The dense model.
        patterns: Patterns of group names, with * and ? as in names of files.

    Raises:
        PruningError: As `match_equal_widths`.
    """
    if not patterns:
        return ()
    own = {group.name: group for group in graph.groups}
    every = {group.name: group for group in graph.every_group()} | own
    if any(not _matched(every, pattern) for pattern in patterns):
        whole = [group.name for group in ChannelGraph(dense, graph.example_inputs, check=False).groups]
        patterns = [pattern for pattern in patterns if _matched(every, pattern) or not _matched(whole, pattern)]
    return match_equal_widths([*every.values()], patterns, kept=every.keys() - own.keys())


def match_equal_widths(
    groups: Sequence[ChannelGroup], patterns: Sequence[str], *, kept: Collection[str] = ()
) -> tuple[tuple[str, ...], ...]:
    """Return the names of the groups that stay equally wide, for each pattern that matches any that can be narrowed.

    Of the groups that keep their width anyway, those count that are as wide as the others.

    Args:
        groups: The groups of the dense model.
        patterns: Patterns of group names, with * and ? as in names of files.
        kept: Names of the groups that keep their width anyway.

    Raises:
        PruningError: When a pattern matches no group, groups of different widths, or one that another matches.
    """
    found: list[tuple[str, ...]] = []
    taken: dict[str, str] = {}
    for pattern in patterns:
        matched = [group for group in groups if fnmatchcase(group.name, pattern)]
        if not matched:
            names = ", ".join([group.name for group in groups if group.name not in kept][:_MOST_NAMES])
            raise PruningError(
                f"equal_widths names '{pattern}', and no prunable group's name matches it; prunable groups: {names}"
            )
        first = next((group for group in matched if group.name not in kept), None)
        if first is None:
            continue
        matched = [group for group in matched if group.name not in kept or group.num_channels == first.num_channels]
        for group in matched:
            if group.name not in kept and _size(group) != _size(first):
                raise PruningError(
                    f"equal_widths names '{pattern}', which matches groups of different widths: '{first.name}' has "
                    f"{_width(first)}, '{group.name}' {_width(group)}"
                )
            if group.name in taken:
                raise PruningError(
                    f"equal_widths names '{taken[group.name]}' and '{pattern}', which both match group '{group.name}'"
                )
            taken[group.name] = pattern
        found.append(tuple(group.name for group in matched))
    return tuple(found)


def _matched(names: Iterable[str], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def _size(group: ChannelGroup) -> tuple[int, int]:
    return group.num_channels, group.num_blocks


def _width(group: ChannelGroup) -> str:
    in_units = f" in units of {group.num_blocks}" if group.num_blocks > 1 else ""
    return f"{group.num_channels} channels{in_units}"


def told_kept(equal: Sequence[Sequence[str]], left: Sequence[ChannelGroup]) -> list[str]:
    """Return sentences about groups that keep their width since another one, which cannot be cut, stays as wide.

    Args:
        equal: Names of groups that stay equally wide.
        left: The groups that can be cut.
    """
    names = {group.name for group in left}
    found = []
    for kind in equal:
        whole, others = ([name for name in kind if (name in names) is can] for can in (False, True))
        if whole and others:
            told = ", ".join(map(repr, others[:_MOST_NAMES])) + (", ..." if len(others) > _MOST_NAMES else "")
            found.append(f"equal_widths keeps {told} as wide as '{whole[0]}', which cannot be cut")
    return found


def unit_scores(group: ChannelGroup, scores: Tensor) -> np.ndarray:
    """Average the scores over the channels of each unit, [num_units]."""
    shape = (group.num_units, group.num_blocks) if group.whole_heads else (group.num_blocks, group.num_units)
    return scores.double().numpy().reshape(shape).mean(axis=1 if group.whole_heads else 0)


@dataclass(frozen=True)
class EqualGroups:
    """Groups that go together, at their present width.

    Attributes:
        members: For one group of each kind, which stands for the others, all of them, itself first.
        kept: Groups that keep their present width, since another one of their kind has to.
    """

    members: Mapping[str, tuple[str, ...]]
    kept: frozenset[str]

    @classmethod
    def of(cls, names: Sequence[str], equal: Sequence[Sequence[str]]) -> EqualGroups:
        """Return the kinds among groups; a group that nothing is said of is a kind of its own.

        Args:
            names: Names of the groups that can be narrowed.
            equal: Names of groups that stay equally wide, also of such as cannot be narrowed.
        """
        kinds = {name: tuple(kind) for kind in equal for name in kind}
        kept = {name for name in names if any(other not in names for other in kinds.get(name, ()))}
        members = {}
        for name in names:
            kind = (name,) if name in kept else kinds.get(name, (name,))
            if kind[0] == name:
                members[name] = kind
        return cls(members, frozenset(kept))

    def spread(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Return numbers of units for all groups from those of the groups that stand for others."""
        return {member: count for name, count in counts.items() for member in self.members.get(name, (name,))}

    def means(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the mean over groups that go together of what each has for its units, in the order of removal."""
        return {name: total / len(self.members[name]) for name, total in self.totals(values).items()}

    def totals(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the sum instead of the mean."""
        return {name: np.sum([values[member] for member in members], axis=0) for name, members in self.members.items()}

    def ratios(self, ratios: Mapping[str, float]) -> dict[str, float]:
        """Return ratios for the groups that stand for others from those of all groups.

        Raises:
            PruningError: When groups of one kind have different ratios.
        """
        found = {}
        for name, members in self.members.items():
            given = {member: ratios[member] for member in members if member in ratios}
            if len(set(given.values())) > 1:
                one, other = next((a, b) for a in given for b in given if given[a] < given[b])
                raise PruningError(
                    f"layer_ratios give {given[one]:g} to '{one}' and {given[other]:g} to '{other}', which "
                    "equal_widths keeps equally wide"
                )
            if given:
                found[name] = next(iter(given.values()))
        return found
