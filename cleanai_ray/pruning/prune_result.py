"""What pruning gives: a smaller model, and what became of the dense one's channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from cleanai_ray.pruning.plan import PruningPlan


@dataclass(frozen=True, kw_only=True, eq=False)
class PruneResult:
    """The outcome of pruning.

    Attributes:
        model: The smaller model, on the device of the dense one.
        plan: What was removed, and why.
        layers: One dict a layer with the columns of layers.parquet, `trial_id` apart.
        kept_inputs: Dense indices of the input channels each narrowed layer kept.
        kept_outputs: Dense indices of the output channels each narrowed layer kept.
    """

    model: nn.Module
    plan: PruningPlan
    layers: tuple[dict[str, Any], ...]
    kept_inputs: Mapping[str, np.ndarray]
    kept_outputs: Mapping[str, np.ndarray]
