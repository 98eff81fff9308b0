"""The result of pruning: a smaller model, and what became of the dense model's channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from cleanai_ray.pruning.history import remember_plan
from cleanai_ray.pruning.plan import PruningPlan
from cleanai_ray.tasks.base import Task


@dataclass(frozen=True, kw_only=True, eq=False)
class PruneResult:
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
