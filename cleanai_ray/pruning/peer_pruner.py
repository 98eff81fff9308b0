"""Pruning by torch-pruning's own pruner, to a ratio or to a budget, with a plan like any other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import nn

from cleanai_ray.config.sections import PruningSection
from cleanai_ray.config.study import Trial
from cleanai_ray.errors import PruningError
from cleanai_ray.graph.peer import PeerModelError, prune_by_peer
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.pruning.cost import budget_limit, costs
from cleanai_ray.pruning.plan import BlockPlan
from cleanai_ray.pruning.pruner import Pruner
from cleanai_ray.pruning.refusals import with_notes

_HALVINGS = 14
"""Enough for steps of 0.00006, less than a channel of a layer of ten thousand."""

_NO_BOUNDS: dict[str, Any] = {
    "layer_ratios": {},
    "equal_widths": (),
    "round_to": None,
    "max_ratio": 1.0,
    "min_channels": 1,
}
"""Bounds that torch-pruning does not keep to, as no bounds."""

_Pruned = tuple[nn.Module, dict[str, np.ndarray]]


class PeerPruner(Pruner):
    """Removes what torch-pruning's magnitude pruner removes; for a budget, its ratio is bisected to meet it.

    Of the study's bounds, only the ignored layers count. What `Pruner` keeps at its width is ignored as well.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        trial: Trial,
        *,
        bounds: PruningSection | None = None,
        blocks: Sequence[BlockPlan] = (),
        **options: Any,
    ) -> None:
        bounds = (bounds or PruningSection()).model_copy(
            update=_NO_BOUNDS | ({} if blocks else {"remove_blocks": None})
        )
        super().__init__(model, example_inputs, trial, bounds=bounds, blocks=blocks, **options)

    def take_step(self, step: int) -> bool:
        """Remove all channels at once.

        A group without those channels of which the model would not run, or be wrong, keeps its width, with a warning,
        and torch-pruning prunes the others anew.

        Raises:
            PruningError: When a budget cannot be met, no group is left, torch-pruning fails, or the model that it cuts
                is another one.
        """
        if not self._graph.groups:
            raise PruningError(with_notes("the model has no prunable group of layers", self._graph.notes, ": "))
        try:
            model, removed = self._pruned()
        except PeerModelError as error:
            kept = self._graph.try_to_remove(error.removed)
            if not kept:  # of the same channels, this package leaves a model that runs
                raise
        else:
            kept = self._graph.try_to_remove(removed)
        if kept:
            self._warnings += kept
            return self.take_step(step)
        theirs, ours = (measure_complexity(each, self._graph.example_inputs) for each in (model, self._graph.model))
        if (theirs.params, theirs.macs) != (ours.params, ours.macs):
            raise PruningError(
                f"torch-pruning cuts this model to {theirs.params} parameters, in a way that no plan describes (it "
                f"would leave {ours.params}); leave torch_pruning out of sweep.controls.kinds"
            )
        return True

    def _told_bounds(self) -> dict[str, Any]:
        told = super()._told_bounds()
        return {key: value for key, value in told.items() if key not in ("least_steps", "layer_ratios")}

    def _pruned(self) -> _Pruned:
        budget, dense = self._trial.budget, self._dense_cost

        def at(ratio: float) -> _Pruned:
            return prune_by_peer(self._graph, ratio, self._ignored)

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
