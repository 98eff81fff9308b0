"""Importance method `magnitude`."""

from torch import Tensor

from cleanai_ray.graph.graph import ChannelGroup
from cleanai_ray.importance.base import ImportanceMethod, ScoringContext
from cleanai_ray.registry import METHODS


@METHODS.register("magnitude")
class Magnitude(ImportanceMethod):
    """Group L2 norm of the weights of every layer that holds the channel (torch-pruning; Fang et al. 2023)."""

    def __init__(self, p: int = 2) -> None:
        self._p = p

    def score(self, group: ChannelGroup, context: ScoringContext) -> Tensor:
        """Return the group norm of each channel, [num_channels]."""
        return context.graph.torch_pruning_scores(group, "GroupMagnitudeImportance", p=self._p)
