"""Importance method `bn_scale`."""

from torch import Tensor

from cleanai_ray.graph.graph import ChannelGroup
from cleanai_ray.importance.base import ImportanceMethod, ScoringContext
from cleanai_ray.registry import METHODS


@METHODS.register("bn_scale")
class BatchNormScale(ImportanceMethod):
    """Magnitude of the batch-norm scale (torch-pruning; Liu et al. 2017); refuses groups without a batch-norm."""

    def score(self, group: ChannelGroup, context: ScoringContext) -> Tensor:
        """Return the mean absolute scale of each channel, [num_channels]."""
        return context.graph.torch_pruning_scores(group, "BNScaleImportance")
