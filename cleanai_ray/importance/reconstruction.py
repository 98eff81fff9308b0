"""Importance method `reconstruction`."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cleanai_ray.errors import PruningError
from cleanai_ray.graph.graph import ChannelGroup
from cleanai_ray.importance.base import ImportanceMethod, ScoringContext
from cleanai_ray.importance.curves import GroupCurve
from cleanai_ray.registry import METHODS


@METHODS.register("reconstruction")
class Reconstruction(ImportanceMethod):
    """Joint least-squares error of what the next layers compute (backward elimination; Hassibi and Stork 1993).

    Channels are removed in the order of a greedy elimination, which refits the layers that read them after every
    removal. Groups are compared by what their error does to the model's output (KL, without labels). With a budget, the
    removal that does least harm per saving comes next, whatever the mode.

    Args:
        search: Number of other allocations of the budget that are tried: each is repaired in closed form, and judged
            by the KL of the model's output on images held back. 0: none.
    """

    needs_curves = True
    comparable = True

    def __init__(self, search: int = 0) -> None:
        if not isinstance(search, int) or isinstance(search, bool) or search < 0:
            raise ValueError(f"search is {search!r}; allowed: a whole number, at least 0")
        self.search = search

    def score(self, group: ChannelGroup, context: ScoringContext) -> Tensor:
        """Return the harm that removing each channel in its turn adds, increasing along the order, [num_channels]."""
        curve = _curve(group, context)
        kept = context.graph.kept_channels[group.name]
        prices = curve.prices(kept)
        places = np.argsort(np.argsort(curve.ranks(kept), kind="stable"))
        least = np.finfo(np.float64).tiny
        rising = [least]
        for price in prices:
            rising.append(max(float(price), np.nextafter(rising[-1], np.inf)))
        rising.append(np.nextafter(rising[-1], np.inf))
        return torch.from_numpy(np.asarray(rising[1:])[places][group.unit_of])

    def prices(self, group: ChannelGroup, context: ScoringContext) -> np.ndarray:
        """Return the harm that removing each of the group's units in turn adds, [num_units - 1]."""
        return _curve(group, context).prices(context.graph.kept_channels[group.name])


def _curve(group: ChannelGroup, context: ScoringContext) -> GroupCurve:
    if context.curves is None:
        raise PruningError("the method reads sensitivity curves, and none were given; pass batches or curves")
    curve = context.curves[group.name]
    if curve.num_blocks != group.num_blocks or curve.num_channels <= context.graph.kept_channels[group.name].max():
        raise PruningError(f"the sensitivity curve of layer '{group.name}' was taken from another model")
    return curve
