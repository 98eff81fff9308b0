"""The time of whole blocks, and the latency profile of a model without some of them.

A block is one more kind of unit: the model without it, all layers at their width, is timed beside the dense one. What
narrowing saves without a block follows from what it saves with it: a group within another block saves as many
milliseconds as before, and one that also cuts layers of the block saves those layers' part less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import nn

from cleanai_ray.evaluation.rounds import DENSE
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.graph.group import ChannelGroup
from cleanai_ray.profile.fitted import LatencyProfile, TimedModel
from cleanai_ray.profile.measure import TimeModels
from cleanai_ray.profile.table import fit_profile
from cleanai_ray.pruning.block_removal import without_blocks
from cleanai_ray.pruning.cost import CostModel
from cleanai_ray.pruning.granularity import Granularity
from cleanai_ray.pruning.plan import BlockPlan

_MODELS_AT_ONCE = 6
_LEAST_LEFT = 0.01
"""The least time that a model without blocks takes, over the dense model's, and a narrower one over its."""

_MOST_NOISE = 2.0
"""The largest logarithm of a ratio of two timings of the same model, as it is carried over."""


def time_blocks(
    model: nn.Module,
    plans: Sequence[BlockPlan],
    time_models: TimeModels,
    restored: Callable[[nn.Module], nn.Module] = lambda network: network,
) -> dict[str, float]:
    """Return the time that the removal of each block alone saves, as a fraction of the dense model's; at least 0.

    Args:
        model: The dense network; it is left as it is. It is timed in the form that the models without blocks have, its
            attention in separate layers, so that no block seems to save or cost what that takes.
        plans: The blocks.
        time_models: Times models in turns.
        restored: Returns the model that a network is a view of, which is timed.
    """
    saved: dict[str, float] = {}
    dense = restored(without_blocks(model, ()))
    for first in range(0, len(plans), _MODELS_AT_ONCE):
        some = plans[first : first + _MODELS_AT_ONCE]
        models = {plan.name: restored(without_blocks(model, [plan])) for plan in some}
        times = time_models({DENSE: dense, **models})
        saved |= {plan.name: max(0.0, 1.0 - times[plan.name].fast / times[DENSE].fast) for plan in some}
    return saved


def profile_without_blocks(
    profile: LatencyProfile, bare: ChannelGraph, granularity: Granularity, saved: float
) -> LatencyProfile:
    """Return the latency profile of a model without some blocks, from that of the dense model; nothing is timed.

    Args:
        profile: The dense model's profile.
        bare: The graph of the model without the blocks.
        granularity: The granularity of the profile's widths.
        saved: The time that the blocks save together, as a fraction of the dense model's.
    """
    left = max(1.0 - saved, _LEAST_LEFT)
    timed = list(_Translation(profile, bare, left).models())
    return fit_profile(bare, granularity, profile.dense_ms * left, timed)


class _Translation:
    """The models of a dense model's profile, as if they had been timed without the blocks.

    Args:
        profile: The dense model's profile.
        bare: The graph of the model without the blocks.
        left: The bare model's time over the dense model's.
    """

    def __init__(self, profile: LatencyProfile, bare: ChannelGraph, left: float) -> None:
        self._timed, self._left = profile.timed, left
        self._costs = profile.cost, CostModel(bare)
        self._channels = profile.cost.num_channels
        known = sum(profile.layer_times.values()) > 0
        self._weights = profile.layer_times if known else self._costs[0].layer_macs
        self._names = self._same_groups(bare)
        self._dense_names = {group.name: name for name, found in self._names.items() for group in found}

    def _same_groups(self, bare: ChannelGraph) -> dict[str, list[ChannelGroup]]:
        """Return the bare model's groups by the dense group that numbers the outputs of the same layers."""
        places, found = self._costs[0].groups_of_outputs, dict[str, list[ChannelGroup]]()
        for group in bare.groups:
            layers = (member.layer for member in group.members if member.side != "in")
            same = next((places[layer] for layer in layers if layer in places), None)
            if same is not None and self._channels[same] == group.num_channels:
                found.setdefault(same, []).append(group)
        return found

    def models(self) -> Iterator[TimedModel]:
        """Yield the models; without those that narrow nothing but layers of the blocks."""
        for model in self._timed:
            if model.kind == "repeat":
                yield self._noisier(model)
                continue
            groups = [group for name in model.widths for group in self._names.get(name, ())]
            # A group that falls into two without the blocks has two widths, each alone.
            for some in [[group] for group in groups] if model.kind == "group" else [groups]:
                if some:
                    yield self._translated(model, some)

    def _translated(self, model: TimedModel, groups: Sequence[ChannelGroup]) -> TimedModel:
        gone = {name: self._channels[name] - width for name, width in model.widths.items()}
        own = {group.name: gone[self._dense_names[group.name]] for group in groups}
        whole, part = (self._work(cost, lost) for cost, lost in zip(self._costs, (gone, own), strict=True))
        saved = (1.0 - model.ratio) * (part / whole if whole > 0 else 1.0)
        widths = {group.name: group.num_channels - own[group.name] for group in groups}
        return TimedModel(kind=model.kind, widths=widths, ratio=max(_LEAST_LEFT, 1.0 - saved / self._left))

    def _noisier(self, model: TimedModel) -> TimedModel:
        """Return a repeat that tells the noise of what is carried over: of a saving over the time that is left."""
        noise = min(_MOST_NOISE, max(-_MOST_NOISE, math.log(model.ratio) / self._left))
        return TimedModel(kind=model.kind, widths={}, ratio=math.exp(noise))

    def _work(self, cost: CostModel, gone: Mapping[str, int]) -> float:
        """Return the time that layers save, over the dense time, as their kept work says."""
        return sum(self._weights.get(name, 0.0) * (1.0 - kept) for name, kept in cost.kept_work(gone).items())
