"""What a model would cost after surgery, without surgery: exact for convolutions, linear layers and norms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from cleanai_ray.evaluation.complexity import measure_complexity
from cleanai_ray.pruning.graph import ChannelGraph


@dataclass(frozen=True)
class _Layer:
    """Cost of one layer: what scales with inputs times outputs, and what scales with outputs alone."""

    macs: float
    weights: float
    biases: float
    coupled: bool


class CostModel:
    """MACs and parameters as a function of how many channels each group loses.

    A layer's MACs and weights scale with the kept share of its inputs times the kept share of its outputs; those of
    norms and depthwise convolutions with one share; those of attention with its square, which is exact for the
    projections and overstates the saving in the product of queries and keys.

    Args:
        graph: The graph at its present width, which the estimates start from.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        complexity = measure_complexity(graph.model, graph.example_inputs)
        self.macs, self.params = float(complexity.macs), float(complexity.params)
        self._cuts: dict[tuple[str, str], list[tuple[str, float]]] = defaultdict(list)
        for group in graph.groups:
            for member in group.members:
                share = len(member.channels) / group.num_channels
                for side in ("out", "in") if member.side == "both" else (member.side,):
                    self._cuts[member.layer, side].append((group.name, share / graph.width(member.layer, side)))
        macs = {layer.name: float(layer.macs) for layer in complexity.layers}
        self._layers = {name: _describe(graph, name, macs.get(name, 0.0)) for name, _ in self._cuts}

    def estimate(self, removed: Mapping[str, int]) -> dict[str, float]:
        """Return `macs` and `params` when each group loses a number of channels (present numbering)."""
        kept = {
            key: 1.0 - sum(removed.get(name, 0) * share for name, share in cuts) for key, cuts in self._cuts.items()
        }
        macs, params = self.macs, self.params
        for name, layer in self._layers.items():
            out = kept.get((name, "out"), 1.0)
            both = out if layer.coupled else out * kept.get((name, "in"), 1.0)
            macs -= layer.macs * (1 - both)
            params -= layer.weights * (1 - both) + layer.biases * (1 - out)
        return {"macs": macs, "params": params}


def _describe(graph: ChannelGraph, name: str, macs: float) -> _Layer:
    if name in graph.parameters:
        return _Layer(macs, float(graph.parameters[name].numel()), 0.0, True)
    module = graph.model.get_submodule(name)
    count = float(sum(value.numel() for value in module.parameters()))
    weights = float(sum(value.numel() for value in module.parameters() if value.dim() > 1))
    depthwise = isinstance(module, nn.Conv2d) and module.groups == module.out_channels > 1
    coupled = depthwise or not isinstance(module, (nn.Conv2d, nn.Linear, nn.MultiheadAttention))
    return _Layer(macs, weights, count - weights, coupled)
