"""Importance method `taylor`."""

from torch import Tensor

from cleanai_ray.graph.graph import ChannelGroup
from cleanai_ray.importance.base import ImportanceMethod, ScoringContext
from cleanai_ray.registry import METHODS


@METHODS.register("taylor")
class Taylor(ImportanceMethod):
    """First-order Taylor expansion of the loss, |weight x gradient| (torch-pruning; Molchanov et al. 2019).

    The magnitude of the gradient is taken for each calibration batch and averaged over batches, as in the paper; with
    one batch this is exactly torch-pruning's score.
    """

    needs_gradients = True

    def score(self, group: ChannelGroup, context: ScoringContext) -> Tensor:
        """Return the summed |weight x gradient| of each channel, [num_channels]."""
        return context.graph.torch_pruning_scores(group, "GroupTaylorImportance")
