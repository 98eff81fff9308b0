"""Importance method `random`."""

import hashlib

import torch
from torch import Tensor

from cleanai_ray.graph.graph import ChannelGroup
from cleanai_ray.importance.base import ImportanceMethod, ScoringContext
from cleanai_ray.registry import METHODS


@METHODS.register("random")
class Random(ImportanceMethod):
    """Uniform random scores: the control that every comparison needs. They depend only on the trial's seeds."""

    def score(self, group: ChannelGroup, context: ScoringContext) -> Tensor:
        """Return random scores in [0, 1), [num_channels]."""
        words = f"{context.seed}/{group.name}/{group.num_channels}"
        seed = int.from_bytes(hashlib.sha256(words.encode()).digest()[:7], "big")
        return torch.rand(group.num_channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
