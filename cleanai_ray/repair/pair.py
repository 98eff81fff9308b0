"""A dense model and its pruned copy, as every repair needs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from cleanai_ray.nn.open_attention import open_attention

Kept = Mapping[str, np.ndarray]
"""For each narrowed layer, the dense indices of the channels it kept."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelPair:
    """A dense model and its pruned copy.

    Attributes:
        dense: The dense model; repair leaves it as it is. Its attention is in separate layers, as that of the pruned
            copy is: of another model it is a view (see `open_attention`).
        pruned: Its pruned copy.
        kept_inputs: Dense indices of the input channels each narrowed layer kept.
        kept_outputs: Dense indices of the output channels each narrowed layer kept.
    """

    dense: nn.Module
    pruned: nn.Module
    kept_inputs: Kept
    kept_outputs: Kept

    def __post_init__(self) -> None:
        object.__setattr__(self, "dense", open_attention(self.dense))
