"""Importance method `lamp`."""

from torch import Tensor

from cleanai_ray.graph.graph import ChannelGroup
from cleanai_ray.importance.base import ImportanceMethod, ScoringContext
from cleanai_ray.registry import METHODS


@METHODS.register("lamp")
class Lamp(ImportanceMethod):
    """Layer-adaptive magnitude: squared norm relative to those at least as large (torch-pruning; Lee et al. 2021)."""

    def score(self, group: ChannelGroup, context: ScoringContext) -> Tensor:
        """Return the LAMP score of each channel, [num_channels]."""
        return context.graph.torch_pruning_scores(group, "LAMPImportance")
