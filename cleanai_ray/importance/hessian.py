"""Importance method `hessian`."""

from torch import Tensor

from cleanai_ray.graph.graph import ChannelGroup
from cleanai_ray.importance.base import ImportanceMethod, ScoringContext
from cleanai_ray.registry import METHODS


@METHODS.register("hessian")
class Hessian(ImportanceMethod):
    """Second-order Taylor expansion of the loss, weight^2 x squared gradient (torch-pruning; LeCun et al. 1989).

    Optimal brain damage, with the mean over calibration samples of the squared gradient of each sample's loss (the
    diagonal of the empirical Fisher matrix) in place of the diagonal of the Hessian.
    """

    needs_squared_gradients = True

    def score(self, group: ChannelGroup, context: ScoringContext) -> Tensor:
        """Return the summed weight^2 x squared gradient of each channel, [num_channels]."""
        return context.graph.torch_pruning_scores(group, "GroupHessianImportance")
