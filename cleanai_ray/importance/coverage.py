"""Importance method `coverage`."""

from __future__ import annotations

from torch import Tensor

from cleanai_ray.errors import PruningError
from cleanai_ray.graph.graph import ChannelGroup
from cleanai_ray.graph.group import Member
from cleanai_ray.importance.base import (
    ImportanceMethod,
    ScoringContext,
    average_over_layers,
    producers,
    readers,
    statistics_of,
)
from cleanai_ray.registry import METHODS, METRICS


@METHODS.register("coverage")
class Coverage(ImportanceMethod):
    """Neuron coverage: how active a channel is on the calibration data, by the trial's coverage metric.

    The coverage of a channel is the mean over the layers that read it (`observe: activation`), or that compute it
    (`observe: output`). High coverage = keep.
    """

    uses_coverage_metric = True
    needs_activations = True

    def score(self, group: ChannelGroup, context: ScoringContext) -> Tensor:
        """Return the coverage of each channel of the group, [num_channels]."""
        if context.coverage_metric is None:
            raise PruningError(f"coverage needs a coverage metric; allowed: {', '.join(METRICS.names())}")
        metric = METRICS.get(context.coverage_metric)
        side = "inputs" if context.observe == "activation" else "outputs"

        def values(member: Member) -> Tensor | None:
            statistics = statistics_of(context, member, side)
            return None if statistics is None else metric(statistics)

        layers = readers(group) if side == "inputs" else producers(group)
        return average_over_layers(group, layers, values, reduce="mean")
