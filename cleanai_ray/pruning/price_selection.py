"""Which group loses a unit next, where removals have a price that is comparable between groups."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Saving = Callable[[Mapping[str, int], str], float]
"""What one more unit of a group saves, when each group has lost a number of units already."""


def removal_sequence(
    prices: Mapping[str, np.ndarray], caps: Mapping[str, int], saving: Saving, start: Mapping[str, int] | None = None
) -> list[str]:
    """Return the group of every removal, cheapest per saving first; savings shrink as neighbouring layers narrow.

    Since they only shrink, a price per saving that was computed earlier is a lower bound: a group that is cheapest by
    such a bound, and still is when computed anew, is the cheapest.

    Args:
        prices: What removing the units of a group one after another costs, by group name.
        caps: Units that may go from each group.
        saving: What one more unit saves.
        start: Units that other groups have lost before.
    """
    counts = dict(start or {})
    names: Sequence[str] = list(prices)

    def entry(position: int) -> tuple[float, int]:
        name = names[position]
        saved = saving(counts, name)
        return (float(prices[name][counts.get(name, 0)]) / saved if saved > 0 else np.inf, position)

    waiting = [entry(position) for position, name in enumerate(names) if caps[name] > 0]
    heapq.heapify(waiting)
    sequence: list[str] = []
    while waiting:
        _, position = waiting[0]
        now = entry(position)
        if len(waiting) > 1 and now > min(waiting[1:3]):
            heapq.heapreplace(waiting, now)
            continue
        name = names[position]
        sequence.append(name)
        counts[name] = counts.get(name, 0) + 1
        if counts[name] < caps[name]:
            heapq.heapreplace(waiting, entry(position))
        else:
            heapq.heappop(waiting)
    return sequence
