"""The cost of a pruned model, estimated without cutting it: exact for convolutions, linear layers and norms."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from cleanai_ray.config.sweep import Budget
from cleanai_ray.errors import PruningError
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.nn.attention import HeadProduct
from cleanai_ray.nn.complexity import Complexity, measure_complexity

BYTES_PER_MB = 1e6
BUDGET_TOLERANCE = 0.02
_SLACK = 1e-9


@dataclass(frozen=True)
class _Layer:
    """Cost of one layer: the part that scales with inputs times outputs, and the part that scales with outputs alone.

    Parameters count once. The file (in megabytes) also holds buffers, and everything once for each of its names.
    """

    macs: float
    weights: float
    biases: float
    weights_mb: float
    biases_mb: float
    coupled: bool


class CostModel:
    """MACs, parameters and file size as a function of how many channels each group loses.

    A layer's MACs and weights scale with the kept share of its inputs times the kept share of its outputs; those of
    norms and depthwise convolutions with one share; those of attention with its square, which is exact for the
    projections and overstates the saving in the product of queries and keys. The size is that of the safetensors file
    with its header. The estimate assumes that the header keeps its length, which pruning shortens by some bytes.

    Args:
        graph: The graph at its present width, which the estimates start from.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        complexity = measure_complexity(graph.model, graph.example_inputs)
        self._present = costs(complexity)
        self._cuts: dict[tuple[str, str], list[tuple[str, float]]] = defaultdict(list)
        self._sizes = {group.name: group.num_channels for group in graph.groups}
        for group in graph.groups:
            for member in group.members:
                share = len(np.unique(member.channels)) / group.num_channels
                for side in ("out", "in") if member.side == "both" else (member.side,):
                    self._cuts[member.layer, side].append((group.name, share / graph.width(member.layer, side)))
        macs = {layer.name: float(layer.macs) for layer in complexity.layers}
        copies = Counter(id(module) for _, module in graph.model.named_modules(remove_duplicate=False))
        counted: set[nn.Parameter] = set()
        self._layers = {
            name: _describe(graph, name, macs.get(name, 0.0), copies, counted)
            for name in dict.fromkeys(name for name, _ in self._cuts)
        }

    def estimate(self, removed: Mapping[str, int]) -> dict[str, float]:
        """Return `macs`, `params` and `size_mb` when each group loses a number of channels (present numbering)."""
        kept = {key: self._kept_share(cuts, removed) for key, cuts in self._cuts.items()}
        macs, params, size_mb = (self._present[name] for name in ("macs", "params", "size_mb"))
        for name, layer in self._layers.items():
            out = kept.get((name, "out"), 1.0)
            both = out if layer.coupled else out * kept.get((name, "in"), 1.0)
            macs -= layer.macs * (1 - both)
            params -= layer.weights * (1 - both) + layer.biases * (1 - out)
            size_mb -= layer.weights_mb * (1 - both) + layer.biases_mb * (1 - out)
        return {"macs": macs, "params": params, "size_mb": size_mb}

    @property
    def num_channels(self) -> Mapping[str, int]:
        """The channels of each group at its present width."""
        return self._sizes

    @property
    def groups_of_outputs(self) -> dict[str, str]:
        """The group that numbers the output channels of each layer."""
        return {name: cuts[0][0] for (name, side), cuts in self._cuts.items() if side == "out"}

    @property
    def layer_macs(self) -> dict[str, float]:
        """The MACs at its present width of every layer that a group cuts."""
        return {name: layer.macs for name, layer in self._layers.items()}

    def kept_work(self, removed: Mapping[str, float]) -> dict[str, float]:
        """Return the share of each layer's work that is left when each group loses a number of channels.

        It is the share of the layer's MACs, which the cost of a layer without MACs is taken to follow as well.
        """
        kept = {key: self._kept_share(cuts, removed) for key, cuts in self._cuts.items()}
        shares = {}
        for name, layer in self._layers.items():
            out = kept.get((name, "out"), 1.0)
            shares[name] = out if layer.coupled else out * kept.get((name, "in"), 1.0)
        return shares

    def _kept_share(self, cuts: Sequence[tuple[str, float]], removed: Mapping[str, float]) -> float:
        """Return the kept share of a dimension: groups cut it side by side, or each all of it (heads, and in heads)."""
        gone = [(removed.get(name, 0) * share, self._sizes[name] * share) for name, share in cuts]
        if sum(reach for _, reach in gone) > 1 + _SLACK:
            return math.prod(1.0 - part for part, _ in gone)
        return 1.0 - sum(part for part, _ in gone)


def costs(complexity: Complexity) -> dict[str, float]:
    """Return the costs that budgets limit: `macs`, `params` and `size_mb`, the file in megabytes of 10^6 bytes."""
    return {
        "macs": float(complexity.macs),
        "params": float(complexity.params),
        "size_mb": complexity.size_bytes / BYTES_PER_MB,
    }


def budget_limit(budget: Budget, dense: Complexity, share: float = 1.0) -> float:
    """Return the cost that a budget allows, in the unit of `costs`.

    Args:
        budget: The most that the pruned model may cost, in anything but latency.
        dense: Cost of the dense model.
        share: Share of the steps taken so far; the width that is kept shrinks geometrically over the steps.

    Raises:
        PruningError: When the dense model is within a budget in megabytes already.
    """
    present = costs(dense)[budget.resource]
    if not budget.is_absolute:
        return present * budget.limit**share
    if budget.limit >= present:
        raise PruningError(
            f"budget {budget}: the dense model's file has {present:.4g} MB already, so there is nothing to remove"
        )
    return present * (budget.limit / present) ** share


def missed_budget(budget: Budget, dense: Complexity, pruned: Complexity) -> str | None:
    """Return a warning if a model is over a budget or more than 2 % below it, otherwise None."""
    cost = costs(pruned)[budget.resource]
    if budget.is_absolute:
        is_met = budget.limit * (1 - BUDGET_TOLERANCE) <= cost <= budget.limit
        return None if is_met else f"the budget {budget} was missed: the pruned model's file has {cost:.4g} MB"
    share = cost / costs(dense)[budget.resource]
    if budget.limit - BUDGET_TOLERANCE <= share <= budget.limit:
        return None
    return f"the budget {budget} was missed: the pruned model has {share:.3f} of the dense {budget.resource}"


def _describe(
    graph: ChannelGraph, name: str, macs: float, copies: Mapping[int, int], counted: set[nn.Parameter]
) -> _Layer:
    """Return the cost of a layer, without parameters that counted with another one; adds its own to these."""
    if name in graph.parameters:
        parameter = graph.parameters[name]
        return _Layer(macs, float(parameter.numel()), 0.0, _megabytes(parameter), 0.0, True)
    module = graph.model.get_submodule(name)
    own = [value for value in module.parameters() if value not in counted]
    counted.update(own)
    count = float(sum(value.numel() for value in own))
    weights = float(sum(value.numel() for value in own if value.dim() > 1))
    depthwise = isinstance(module, _ConvNd) and module.groups == module.out_channels > 1
    coupled = depthwise or not isinstance(module, (_ConvNd, nn.Linear, nn.MultiheadAttention, HeadProduct))
    saved = module.state_dict().values()
    weights_mb = copies[id(module)] * sum(_megabytes(value) for value in saved if value.dim() > 1)
    biases_mb = copies[id(module)] * sum(_megabytes(value) for value in saved if value.dim() == 1)
    return _Layer(macs, weights, count - weights, weights_mb, biases_mb, coupled)


def _megabytes(value: Tensor) -> float:
    return value.numel() * value.element_size() / BYTES_PER_MB


def both_costs(dense: Complexity, pruned: Complexity) -> dict[str, Any]:
    """Return the costs of a pruned model and of the dense one, by the names of a plan's `achieved`."""
    names = ("params", "macs", "size_bytes")
    costs = [(name, getattr(pruned, name), getattr(dense, name)) for name in names]
    return {key: value for name, own, other in costs for key, value in ((name, own), (f"{name}_dense", other))}
