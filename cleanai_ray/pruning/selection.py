"""From scores to a choice of channels: how many each group loses, within bounds, for a ratio or a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from cleanai_ray.errors import PruningError
from cleanai_ray.graph.graph import ChannelGroup
from cleanai_ray.pruning.allocation import AllocationProblem
from cleanai_ray.pruning.equal_widths import EqualGroups, unit_scores
from cleanai_ray.pruning.granularity import Granularity
from cleanai_ray.pruning.layer_ratios import match_layer_ratios
from cleanai_ray.pruning.price_selection import removal_sequence
from cleanai_ray.pruning.selection_request import SelectionRequest
from cleanai_ray.pruning.time_selection import harms_of_scores, spend_time

_SLACK = 1e-9
Cost = Callable[[Mapping[str, int]], float]


class Selector:
    """Chooses channels of the groups of a graph at its present width.

    Args:
        groups: The groups.
        scores: Importance of each channel by group name, [num_channels], high = keep.
        dense_channels: Channels of each group in the dense model.
        request: What to remove.
        prices: For each group, the price of each of its units, removed one after another, least important first.
            Prices are comparable between groups: a limit is met by the removals that cost least per unit of cost saved,
            whatever the mode.
    """

    def __init__(
        self,
        groups: Sequence[ChannelGroup],
        scores: Mapping[str, Tensor],
        dense_channels: Mapping[str, int],
        request: SelectionRequest,
        prices: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self._groups = {group.name: group for group in groups}
        self._equal = EqualGroups.of([*self._groups], request.equal)
        self._prices = None if prices is None else self._equal.totals(prices)
        self._dense = dense_channels
        self._request = request
        self._granularity = request.granularity
        self._scores = {name: unit_scores(group, scores[name]) for name, group in self._groups.items()}
        self._orders = {name: np.argsort(values, kind="stable") for name, values in self._scores.items()}
        ranked = {name: values[self._orders[name]] for name, values in self._scores.items()}
        self._ranked = self._equal.means(ranked)
        self._caps = {name: self._cap(group) for name, group in self._groups.items()}
        self._fixed = self._equal.ratios(match_layer_ratios(groups, request.layer_ratios))

    def select(self, cost: Cost | None = None) -> dict[str, np.ndarray]:
        """Return the channels to remove, by group name, in present numbering.

        Args:
            cost: Cost of the model when each group loses a number of channels; needed for a limit.

        Raises:
            PruningError: When the limit cannot be met within the bounds.
        """
        return self.channels(self.counts(cost))

    def counts(self, cost: Cost | None = None) -> dict[str, int]:
        """Return the number of units that each group loses; the arguments and errors are those of `select`."""
        scopes = self._scopes()
        if self._request.limit is None:
            counts = self._counts_for_ratio(scopes)
            counts = self._rounded_to_some(counts) if self._request.must_remove else self._rounded(counts)
        else:
            assert cost is not None
            counts = self._rounded(self._counts_for_limit(scopes, cost))
        return self._equal.spread(counts)

    def channels(self, counts: Mapping[str, int]) -> dict[str, np.ndarray]:
        """Return the channels to remove when each group loses a number of units, by group name."""
        return {
            name: self._groups[name].expand(np.sort(self._orders[name][:count]))
            for name, count in counts.items()
            if count
        }

    def allocation_problem(self, start: Mapping[str, int], cost: Cost, num_candidates: int) -> AllocationProblem:
        """Return the problem of sharing out the limit better than in `start`, within the same bounds.

        Args:
            start: The result of `counts`.
            cost: Cost of the model when each group loses a number of channels.
            num_candidates: Number of candidates to try.
        """
        assert self._request.limit is not None
        levels = self._levels()
        return AllocationProblem(
            start=start,
            levels={name: found for name, found in levels.items() if len(found) > 1},
            cost=lambda counts: self._cost_of_units(cost, counts),
            limit=self._request.limit,
            num_candidates=num_candidates,
            equal={name: members[1:] for name, members in self._equal.members.items() if len(members) > 1},
        )

    def _levels(self) -> dict[str, list[int]]:
        """Return the numbers of units that each group without a ratio of its own may lose, ascending."""
        return {
            name: sorted({self._rounded({name: count})[name] for count in range(self._caps[name] + 1)})
            for name in self._equal.members
            if name not in self._fixed
        }

    def capped_groups(self, removed: Mapping[str, np.ndarray]) -> list[str]:
        """Return the names of groups that were cut as far as the bounds allow."""
        return [
            name
            for name, channels in removed.items()
            if len(channels) >= self._caps[name] * self._groups[name].num_blocks > 0
        ]

    def _cap(self, group: ChannelGroup) -> int:
        """Return the number of units that a group may still lose."""
        if group.name in self._equal.kept:
            return 0
        dense = self._dense[group.name]
        keep = max(self._request.min_channels, math.ceil(dense * (1 - self._request.max_ratio) - _SLACK), 1)
        return max(0, group.num_units - math.ceil(keep / group.num_blocks))

    def _scopes(self) -> list[list[str]]:
        free = [name for name in self._equal.members if name not in self._fixed]
        if self._request.mode == "local":
            return [[name] for name in free]
        if self._request.mode == "global":
            return [free]
        alike: dict[tuple[tuple[str, str], ...], list[str]] = {}
        for name in free:
            structure = tuple((member.type, member.side) for member in self._groups[name].members)
            alike.setdefault(structure, []).append(name)
        return list(alike.values())

    def _goal(self, names: Sequence[str], ratio: float) -> int:
        """Return the number of channels that groups must still lose until `ratio` of their dense channels are gone.

        int(dense x (1 - ratio)) are kept, as in torch-pruning; whole units may leave fewer, by less than one unit.
        """
        own = [member for name in names for member in self._equal.members[name]]
        dense = sum(self._dense[name] for name in own)
        present = sum(self._groups[name].num_channels for name in own)
        return max(0, present - int(dense * (1 - ratio) + _SLACK))

    def _counts_for_ratio(self, scopes: list[list[str]]) -> dict[str, int]:
        counts = self._fixed_counts()
        ratio = self._request.ratio
        assert ratio is not None
        for scope in scopes:
            ranking = self._ranking(scope)
            gone = np.cumsum([0, *(self._unit_size(name) for name in ranking)])
            counts |= self._take(ranking, int(np.searchsorted(gone, self._goal(scope, ratio))))
        return counts

    def _fixed_counts(self) -> dict[str, int]:
        units = {name: -(-self._goal([name], ratio) // self._unit_size(name)) for name, ratio in self._fixed.items()}
        return {name: min(number, self._caps[name]) for name, number in units.items()}

    def _unit_size(self, name: str) -> int:
        """Return the channels that go with a unit of a group, those of groups that it stands for among them."""
        return self._groups[name].num_blocks * len(self._equal.members[name])

    def _ranking(self, scope: Sequence[str]) -> list[str]:
        """Return the group of every unit of a scope that may be removed, least important first; ties by group order."""
        entries = [
            (score, position, rank, name)
            for position, name in enumerate(scope)
            for rank, score in enumerate(self._ranked[name][: self._caps[name]])
        ]
        return [entry[-1] for entry in sorted(entries)]

    @staticmethod
    def _take(ranking: Sequence[str], number: int) -> dict[str, int]:
        counts: dict[str, int] = {}
        for name in ranking[:number]:
            counts[name] = counts.get(name, 0) + 1
        return counts

    def _counts_for_limit(self, scopes: list[list[str]], cost: Cost) -> dict[str, int]:
        """Return the least removals, in one order over all scopes, that meet the limit (by bisection)."""
        limit = self._request.limit
        assert limit is not None
        fixed = self._fixed_counts()
        if self._request.by_time:
            return self._counts_for_time(limit, cost, self._rounded(fixed))
        order = self._paced(scopes) if self._prices is None else self._by_price(self._prices, cost, fixed)

        def cost_of(number: int) -> float:
            return self._cost_of_units(cost, self._rounded(fixed | self._take(order, number)))

        low, high = 0, len(order)
        self._require_met(cost_of(high), limit)
        while low < high:
            middle = (low + high) // 2
            if cost_of(middle) <= limit * (1 + _SLACK):
                high = middle
            else:
                low = middle + 1
        counts = fixed | self._take(order, low)
        is_automatic = self._granularity is not None and self._granularity.least_steps > 0
        return self._filled(self._rounded(counts), order, cost) if is_automatic else counts

    def _filled(self, counts: Mapping[str, int], order: Sequence[str], cost: Cost) -> dict[str, int]:
        """Widen groups by a step each where that stays within the limit, those that were narrowed last first.

        Groups that narrow at the same pace are all rounded down at once, which may leave much of a limit unused.
        """
        limit, levels, filled = self._request.limit, self._levels(), dict(counts)
        assert limit is not None
        for name in dict.fromkeys(reversed(order)):
            place = levels[name].index(filled.get(name, 0))
            wider = {**filled, name: levels[name][max(place - 1, 0)]}
            if self._cost_of_units(cost, wider) <= limit * (1 + _SLACK):
                filled = wider
        return filled

    def _counts_for_time(self, limit: float, cost: Cost, fixed: Mapping[str, int]) -> dict[str, int]:
        """Return the removals with the least harm that meet a limit of time, whatever the mode."""
        levels = self._levels()
        if self._prices is None:
            harms = harms_of_scores({name: self._ranked[name] for name in levels})
            harms = {name: len(self._equal.members[name]) * harm for name, harm in harms.items()}
        else:
            harms = {name: np.concatenate([[0.0], np.cumsum(self._prices[name])]) for name in levels}
        counts = spend_time(levels, harms, lambda gone: self._cost_of_units(cost, gone), limit, fixed)
        self._require_met(self._cost_of_units(cost, counts), limit)
        return counts

    def _require_met(self, least: float, limit: float) -> None:
        if least > limit * (1 + _SLACK):
            raise PruningError(
                f"the budget cannot be met: removing everything that max_ratio {self._request.max_ratio}, min_channels "
                f"{self._request.min_channels}, ignored_layers and layer_ratios allow leaves "
                f"{least:.4g}{self._request.unit}, and {limit:.4g}{self._request.unit} are allowed"
            )

    def _cost_of_units(self, cost: Cost, counts: Mapping[str, int]) -> float:
        counts = self._equal.spread(counts)
        return cost({name: count * self._groups[name].num_blocks for name, count in counts.items()})

    def _paced(self, scopes: list[list[str]]) -> list[str]:
        """Return the group of every removal, with all scopes narrowing at the same pace."""
        paced = [
            ((rank + 1) / sum(self._groups[name].num_units for name in scope), position, name)
            for position, scope in enumerate(scopes)
            for rank, name in enumerate(self._ranking(scope))
        ]
        return [name for _, _, name in sorted(paced)]

    def _by_price(self, prices: Mapping[str, np.ndarray], cost: Cost, fixed: Mapping[str, int]) -> list[str]:
        """Return the group of every removal, the lowest price per saving first."""
        free = {name: prices[name] for name in self._equal.members if name not in self._fixed}

        def saving(counts: Mapping[str, int], name: str) -> float:
            after = {**counts, name: counts.get(name, 0) + 1}
            return self._cost_of_units(cost, counts) - self._cost_of_units(cost, after)

        return removal_sequence(free, self._caps, saving, fixed)

    def _rounded(self, counts: Mapping[str, int]) -> dict[str, int]:
        granularity = self._granularity
        if granularity is None:
            return dict(counts)
        return {name: self._round(self._groups[name], count, granularity) for name, count in counts.items()}

    def _rounded_to_some(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Return the rounded counts; if that leaves every width, an automatic multiple is halved until it does not."""
        rounded, granularity = self._rounded(counts), self._granularity
        while granularity is not None and granularity.least_steps and granularity.multiple > 1 and any(counts.values()):
            if any(rounded.values()):
                break
            granularity = replace(granularity, multiple=granularity.multiple // 2)
            rounded = {name: self._round(self._groups[name], count, granularity) for name, count in counts.items()}
        return rounded

    def _round(self, group: ChannelGroup, count: int, granularity: Granularity) -> int:
        """Move the kept width to the nearest multiple of the step that is not wider than the group."""
        step = granularity.step(self._dense[group.name], group.num_blocks) // group.num_blocks
        kept = group.num_units - count
        if count == 0 or step > group.num_units:
            return 0
        lowest = max(1, math.ceil((group.num_units - self._caps[group.name]) / step))
        multiple = max(lowest, math.floor(kept / step + 0.5))
        return max(0, group.num_units - min(multiple * step, group.num_units))
