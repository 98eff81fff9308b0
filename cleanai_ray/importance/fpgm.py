"""Importance method `fpgm`."""

from torch import Tensor

from cleanai_ray.graph.graph import ChannelGroup
from cleanai_ray.importance.base import ImportanceMethod, ScoringContext
from cleanai_ray.registry import METHODS


@METHODS.register("fpgm")
class Fpgm(ImportanceMethod):
    """Distance of a channel's filters from all others of the layer (torch-pruning; He et al. 2019)."""

    def score(self, group: ChannelGroup, context: ScoringContext) -> Tensor:
        """Return the summed distance of each channel, [num_channels]."""
        return context.graph.torch_pruning_scores(group, "FPGMImportance")
