"""Pruning by torch-pruning's own pruner, to a ratio or to a budget, with a plan like any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from cleanai_ray.errors import PruningError
from cleanai_ray.graph.peer import prune_by_peer
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.pruning.cost import budget_limit, costs
from cleanai_ray.pruning.pruner import Pruner

_HALVINGS = 14
"""Enough for steps of 0.00006, less than a channel of a layer of ten thousand."""

_Pruned = tuple[nn.Module, dict[str, np.ndarray]]


class PeerPruner(Pruner):
    """Removes what torch-pruning's magnitude pruner removes; for a budget, its ratio is bisected to meet it.

    Of the study's bounds, only the ignored layers count.
    """

    def take_step(self, step: int) -> bool:
        """Remove all channels at once.

        Raises:
            PruningError: When a budget cannot be met, or the model that torch-pruning cuts is another one.
        """
        model, removed = self._pruned()
        self._graph.remove(removed)
        theirs, ours = (measure_complexity(each, self._graph.example_inputs) for each in (model, self._graph.model))
        if (theirs.params, theirs.macs) != (ours.params, ours.macs):
            raise PruningError(
                f"torch-pruning cuts this model to {theirs.params} parameters, in a way that no plan describes (it "
                f"would leave {ours.params}); leave torch_pruning out of sweep.controls.kinds"
            )
        return True

    def _told_bounds(self) -> dict[str, Any]:
        told = {
            key: value for key, value in super()._told_bounds().items() if key not in ("least_steps", "layer_ratios")
        }
        return {**told, "round_to": None, "max_ratio": 1.0, "min_channels": 1}

    def _pruned(self) -> _Pruned:
        budget, dense = self._trial.budget, self._dense_cost

        def at(ratio: float) -> _Pruned:
            return prune_by_peer(self._graph, ratio, self._ignored_layers)

        if self._trial.ratio is not None:
            return at(self._trial.ratio)
        assert budget is not None
        limit, resource = budget_limit(budget, dense), budget.resource

        def cost(model: nn.Module) -> float:
            return costs(measure_complexity(model, self._graph.example_inputs))[resource]

        # At higher ratios, torch-pruning leaves the narrowest group whole, since it would be left without a channel.
        narrowest = min(group.num_units for group in self._graph.groups)
        found = _least_that_fits(at, cost, limit, most=1 - 1.001 / max(2, narrowest))
        if found is None:
            raise PruningError(
                f"torch-pruning does not meet the budget {budget}, even where a group of layers keeps but one channel"
            )
        return found


def _least_that_fits(
    at: Callable[[float], _Pruned], cost: Callable[[nn.Module], float], limit: float, most: float
) -> _Pruned | None:
    """Return the pruned model of the least ratio whose cost is within a limit, by bisection; None if there is none."""
    low, high = 0.0, most
    best = at(high)
    if cost(best[0]) > limit:
        return None
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        candidate = at(middle)
        if cost(candidate[0]) <= limit:
            best, high = candidate, middle
        else:
            low = middle
    return best
