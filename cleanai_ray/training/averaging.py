"""Exponential moving average of a model's weights and buffers."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import nn


class WeightAverage:
    """A second model whose weights are the moving average of the first one's.

    After every step: average = decay * average + (1 - decay) * weights, from the weights before the first step on.
    Floating-point buffers (the running statistics of batch-norm) are averaged alike, so that they belong to the
    averaged weights; other buffers are copied.

    Args:
        model: The model that trains.
        decay: Share of the old average that stays, in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights of a step."""
        averages = chain(self.model.parameters(), self.model.buffers())
        values = chain(model.parameters(), model.buffers())
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value, 1.0 - self._decay)
            else:
                average.copy_(value)
