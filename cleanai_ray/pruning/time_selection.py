"""The removals that bring a model's predicted time below a limit with the least harm.

Times fall in stairs, so groups narrow in chunks, from one width that a target likes to another:

1. Of all moves of a group to any of its narrower widths, the one with the least harm per millisecond saved comes next;
   several steps at once where a step alone saves nothing. This goes on until the limit is met.
2. The last move may be any that reaches the limit: the one with the least harm, whatever it saves.
3. Moves that turn out not to be needed are taken back, the most harmful first.

Where groups save time independently of each other, the sequence of moves runs along the lower convex hull of harm over
time, so that at each of its vertices no other choice that is as fast does less harm, and in between none of the hull
does (Dantzig's bound for the knapsack problem, with the hull of each group's choices: Sinha and Zoltners 1979). Where
groups cut the same layers, it is a heuristic.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence

import numpy as np

_SLACK = 1e-9
_EXPONENT = 1.5

Counts = Mapping[str, int]


def harms_of_scores(scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the harm of removing units of each group by their scores, for methods that tell no errors.

    It is the share of the group's scores that is lost, to the power of 1.5, as that of error curves without probes: the
    more a group has lost, the more harm the next removal does.

    Args:
        scores: The score of each unit by group name, in the order of their removal.

    Returns:
        By group name, the harm when 0, 1, 2, ... units are gone, [num_units + 1].
    """
    harms = {}
    for name, values in scores.items():
        rising = np.concatenate([[0.0], np.cumsum(values - min(0.0, float(values.min())))])
        if rising[-1] <= 0:  # All are worth the same.
            rising = np.arange(len(values) + 1, dtype=np.float64)
        harms[name] = (rising / rising[-1]) ** _EXPONENT
    return harms


def spend_time(
    levels: Mapping[str, Sequence[int]],
    harms: Mapping[str, np.ndarray],
    cost: Callable[[Counts], float],
    limit: float,
    start: Counts,
) -> dict[str, int]:
    """Return the units that each group loses, so that the cost is within a limit if it can be.

    Args:
        levels: The numbers of units that a group may lose, ascending; the first is its number in `start`, or 0.
        harms: By group name, the harm when 0, 1, 2, ... units are gone; it never falls.
        cost: Predicted time when each group loses a number of units; it never rises with a number.
        limit: The time allowed.
        start: Units that groups have lost already, also such that have no levels.
    """
    return _Spending(levels, harms, cost, limit * (1 + _SLACK)).run(dict(start))


class _Spending:
    """One allocation of a time limit."""

    def __init__(
        self,
        levels: Mapping[str, Sequence[int]],
        harms: Mapping[str, np.ndarray],
        cost: Callable[[Counts], float],
        limit: float,
    ) -> None:
        self._levels = {name: list(found) for name, found in levels.items() if len(found) > 1}
        self._harms = harms
        self._cost = cost
        self._limit = limit
        self._names = list(self._levels)
        self._places = dict.fromkeys(self._names, 0)

    def run(self, counts: dict[str, int]) -> dict[str, int]:
        """Return the counts that meet the limit, or those from which nothing saves any more time."""
        now = self._cost(counts)
        # Savings shrink as neighbours narrow, so an earlier price is a bound: only the cheapest is computed again.
        waiting = [(self._best(name, counts, now)[0], index) for index, name in enumerate(self._names)]
        heapq.heapify(waiting)
        while waiting and now > self._limit:
            index = waiting[0][1]
            name = self._names[index]
            price, place = self._best(name, counts, now)
            if len(waiting) > 1 and (price, index) > min(waiting[1:3]):
                heapq.heapreplace(waiting, (price, index))
                continue
            if np.isinf(price):
                return counts
            after = self._cost({**counts, name: self._levels[name][place]})
            if after <= self._limit:
                name, place = self._last_move(counts, name, place)
                after = self._cost({**counts, name: self._levels[name][place]})
            self._places[name], counts[name], now = place, self._levels[name][place], after
            if now <= self._limit:
                break
            if place + 1 < len(self._levels[name]):
                heapq.heapreplace(waiting, (self._best(name, counts, now)[0], index))
            else:
                heapq.heappop(waiting)
        return self._without_needless(counts) if now <= self._limit else counts

    def _last_move(self, counts: Counts, name: str, place: int) -> tuple[str, int]:
        """Return the move with the least harm that reaches the limit, of which one is given."""
        least = self._harm(name, place) - self._harm(name, self._places[name])
        for other in self._names:
            last = len(self._levels[other]) - 1
            if self._cost({**counts, other: self._levels[other][last]}) > self._limit:
                continue
            reached = self._widest(other, counts, self._places[other], last)
            harm = self._harm(other, reached) - self._harm(other, self._places[other])
            if harm < least:
                least, name, place = harm, other, reached
        return name, place

    def _harm(self, name: str, place: int) -> float:
        return float(self._harms[name][self._levels[name][place]])

    def _best(self, name: str, counts: Counts, now: float) -> tuple[float, int]:
        """Return the least price of a move of a group and the level it leads to."""
        here, last = self._places[name], len(self._levels[name]) - 1
        best = (np.inf, min(here + 1, last))
        for place in _ahead(here, last):
            saved = now - self._cost({**counts, name: self._levels[name][place]})
            if saved > 0:
                price = (self._harm(name, place) - self._harm(name, here)) / saved
                if price < best[0] * (1 - _SLACK):
                    best = (price, place)
        return best

    def _without_needless(self, counts: dict[str, int]) -> dict[str, int]:
        """Widen groups as far as the limit allows, each time the one that most harm is spared by."""
        while True:
            spared = {name: self._spared(name, counts) for name in self._names}
            name = max(spared, key=lambda key: spared[key][0], default="")
            if not name or spared[name][0] <= 0:
                return counts
            place = spared[name][1]
            self._places[name], counts[name] = place, self._levels[name][place]

    def _spared(self, name: str, counts: Counts) -> tuple[float, int]:
        """Return the harm that a group can be spared within the limit, and the level that spares it."""
        here = self._places[name]
        wider = self._widest(name, counts, 0, here)
        return self._harm(name, here) - self._harm(name, wider), wider

    def _widest(self, name: str, counts: Counts, low: int, high: int) -> int:
        """Return the first of some levels of a group that meets the limit, of which the last does (by bisection)."""
        while low < high:
            middle = (low + high) // 2
            if self._cost({**counts, name: self._levels[name][middle]}) <= self._limit:
                high = middle
            else:
                low = middle + 1
        return low


def _ahead(here: int, last: int) -> list[int]:
    """Return levels beyond one: the next four, then ever farther ones, and the last."""
    found, distance = [], 1
    while here + distance <= last:
        found.append(here + distance)
        distance += 1 if distance < 4 else distance // 2
    return found if not found or found[-1] == last else [*found, last]
