"""What a model would cost after surgery, without surgery: exact for convolutions, linear layers and norms."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from cleanai_ray.config.sweep import Budget
from cleanai_ray.errors import PruningError
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.nn.complexity import Complexity, measure_complexity

BYTES_PER_MB = 1e6
BUDGET_TOLERANCE = 0.02


@dataclass(frozen=True)
class _Layer:
    """Cost of one layer: what scales with inputs times outputs, and what scales with outputs alone.

    Parameters count once; in the file (megabytes) are buffers too, and everything once for each name.
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
    with its header, which the estimate takes to be as long as it is now: surgery shortens it by some bytes.

    Args:
        graph: The graph at its present width, which the estimates start from.
    """

    def __init__(self, graph: ChannelGraph) -> None:
        complexity = measure_complexity(graph.model, graph.example_inputs)
        self._present = costs(complexity)
        self._cuts: dict[tuple[str, str], list[tuple[str, float]]] = defaultdict(list)
        for group in graph.groups:
            for member in group.members:
                share = len(member.channels) / group.num_channels
                for side in ("out", "in") if member.side == "both" else (member.side,):
                    self._cuts[member.layer, side].append((group.name, share / graph.width(member.layer, side)))
        macs = {layer.name: float(layer.macs) for layer in complexity.layers}
        copies = Counter(id(module) for _, module in graph.model.named_modules(remove_duplicate=False))
        self._layers = {name: _describe(graph, name, macs.get(name, 0.0), copies) for name, _ in self._cuts}

    def estimate(self, removed: Mapping[str, int]) -> dict[str, float]:
        """Return `macs`, `params` and `size_mb` when each group loses a number of channels (present numbering)."""
        kept = {
            key: 1.0 - sum(removed.get(name, 0) * share for name, share in cuts) for key, cuts in self._cuts.items()
        }
        macs, params, size_mb = (self._present[name] for name in ("macs", "params", "size_mb"))
        for name, layer in self._layers.items():
            out = kept.get((name, "out"), 1.0)
            both = out if layer.coupled else out * kept.get((name, "in"), 1.0)
            macs -= layer.macs * (1 - both)
            params -= layer.weights * (1 - both) + layer.biases * (1 - out)
            size_mb -= layer.weights_mb * (1 - both) + layer.biases_mb * (1 - out)
        return {"macs": macs, "params": params, "size_mb": size_mb}


def costs(complexity: Complexity) -> dict[str, float]:
    """Return what budgets count of a model: `macs`, `params` and `size_mb`, its file in megabytes of 10^6 bytes."""
    return {
        "macs": float(complexity.macs),
        "params": float(complexity.params),
        "size_mb": complexity.size_bytes / BYTES_PER_MB,
    }


def budget_limit(budget: Budget, dense: Complexity, share: float = 1.0) -> float:
    """Return the cost that a budget allows, in the unit of `costs`.

    Args:
        budget: What the pruned model may cost.
        dense: What the dense model costs.
        share: Share of the steps that are taken by then: what is kept shrinks geometrically over the steps.

    Raises:
        PruningError: When a budget in megabytes is not below what the dense model has, or is one of latency.
    """
    present = costs(dense).get(budget.resource)
    if present is None:
        raise PruningError(f"budget {budget}: {budget.resource} is met by a search over measurements, not by one plan")
    if not budget.is_absolute:
        return present * budget.limit**share
    if budget.limit >= present:
        raise PruningError(
            f"budget {budget}: the dense model's file has {present:.4g} MB already, so that there is nothing to remove"
        )
    return present * (budget.limit / present) ** share


def missed_budget(budget: Budget, dense: Complexity, pruned: Complexity) -> str | None:
    """Return a warning where a model is over a budget or more than 2 % below it, else None."""
    cost = costs(pruned)[budget.resource]
    if budget.is_absolute:
        is_met = budget.limit * (1 - BUDGET_TOLERANCE) <= cost <= budget.limit
        return None if is_met else f"the budget {budget} was missed: the pruned model's file has {cost:.4g} MB"
    share = cost / costs(dense)[budget.resource]
    if budget.limit - BUDGET_TOLERANCE <= share <= budget.limit:
        return None
    return f"the budget {budget} was missed: the pruned model has {share:.3f} of the dense {budget.resource}"


def _describe(graph: ChannelGraph, name: str, macs: float, copies: Mapping[int, int]) -> _Layer:
    if name in graph.parameters:
        parameter = graph.parameters[name]
        return _Layer(macs, float(parameter.numel()), 0.0, _megabytes(parameter), 0.0, True)
    module = graph.model.get_submodule(name)
    count = float(sum(value.numel() for value in module.parameters()))
    weights = float(sum(value.numel() for value in module.parameters() if value.dim() > 1))
    depthwise = isinstance(module, nn.Conv2d) and module.groups == module.out_channels > 1
    coupled = depthwise or not isinstance(module, (nn.Conv2d, nn.Linear, nn.MultiheadAttention))
    saved = module.state_dict().values()
    weights_mb = copies[id(module)] * sum(_megabytes(value) for value in saved if value.dim() > 1)
    biases_mb = copies[id(module)] * sum(_megabytes(value) for value in saved if value.dim() == 1)
    return _Layer(macs, weights, count - weights, weights_mb, biases_mb, coupled)


def _megabytes(value: Tensor) -> float:
    return value.numel() * value.element_size() / BYTES_PER_MB
