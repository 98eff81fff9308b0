"""The order of removals over all groups, when removals have prices that are comparable between groups."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Saving = Callable[[Mapping[str, int], str], float]
"""The cost that removing one more unit of a group saves, when each group has lost a number of units already."""


def removal_sequence(
    prices: Mapping[str, np.ndarray], caps: Mapping[str, int], saving: Saving, start: Mapping[str, int] | None = None
) -> list[str]:
    """Return the group of every removal, the lowest price per saving first.

    Savings shrink as neighbouring layers narrow. Since they never grow, a price per saving that was computed earlier is
    a lower bound. So a group that is cheapest by its bound, and still is when its price is computed again, is the
    cheapest.

    Args:
        prices: The price of each unit of a group, removed one after another, by group name.
        caps: Units that each group may lose.
        saving: The cost that one more unit saves.
        start: Units that other groups have lost already.
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
