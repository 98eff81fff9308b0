"""The result of pruning: a smaller model, and what became of the dense model's channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from cleanai_ray.display.tables import Displayed, Summary
from cleanai_ray.pruning.history import remember_plan
from cleanai_ray.pruning.plan import PruningPlan
from cleanai_ray.pruning.result_chart import result_chart
from cleanai_ray.pruning.summary import in_short, summary_of_result
from cleanai_ray.tasks.base import Score, Task

if TYPE_CHECKING:
    from altair.typing import ChartType


@dataclass(frozen=True, kw_only=True, eq=False)
class PruneResult(Displayed):
    """The result of pruning.

    Attributes:
        model: The smaller model, on the device of the dense one.
        plan: The channels that were removed, and why.
        layers: One dict per layer with the columns of layers.parquet except `trial_id`.
        kept_inputs: Dense indices of the input channels each narrowed layer kept.
        kept_outputs: Dense indices of the output channels each narrowed layer kept.
    """

    model: nn.Module
    plan: PruningPlan
    layers: tuple[dict[str, Any], ...]
    kept_inputs: Mapping[str, np.ndarray]
    kept_outputs: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        remember_plan(self.model, self.plan)

    def of_task(self, task: Task) -> PruneResult:
        """Return the result of pruning a task's network as one of its model."""
        identity = self.plan.model if task.name == "classification" else {**self.plan.model, "task": task.name}
        return replace(self, model=task.restored(self.model), plan=replace(self.plan, model=identity))

    def summary(self, dense: Score | float | None = None, pruned: Score | float | None = None) -> Summary:
        """Return the model before and after as tables: costs, scores if they are given, and every layer.

        Latency is among the costs where the model was pruned to a latency.

        Args:
            dense: The dense model's score, of `evaluate`; or its accuracy, in [0, 1].
            pruned: The pruned model's, likewise.
        """
        return summary_of_result(self.plan, self.layers, dense, pruned)

    def plot(self, cost: str = "channels") -> ChartType:
        """Return an altair chart of what each layer kept.

        Args:
            cost: `channels`, `params` or `macs`.

        Raises:
            ValueError: When it is another.
        """
        return result_chart(self.layers, cost, in_short(self.plan))

    def __repr__(self) -> str:
        return f"PruneResult({in_short(self.plan)})"
