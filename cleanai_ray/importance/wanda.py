"""Importance method `wanda`."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from cleanai_ray.graph.graph import ChannelGroup
from cleanai_ray.graph.group import Member
from cleanai_ray.importance.base import (
    ImportanceMethod,
    ScoringContext,
    average_over_layers,
    producers,
    readers,
    statistics_of,
)
from cleanai_ray.nn.attention import HeadChannels
from cleanai_ray.registry import METHODS

_VARIANTS = ("consumer", "producer")


@METHODS.register("wanda")
class Wanda(ImportanceMethod):
    """Weight times activation norm (Sun et al. 2023, arXiv:2306.11695), summed over the weights of a channel.

    `variant: consumer` (the default) is the paper's: the absolute weights with which a layer reads the channel, times
    the root mean square of the channel's activations at that layer's input. `variant: producer` is that of CleanAI v5:
    the absolute weights that compute the channel, times the root mean square of the raw output. The root mean square is
    the paper's norm divided by the root of the number of activations, which does not change the order within a layer.
    Values are averaged over the layers of the group.
    """

    needs_activations = True

    def __init__(self, variant: str = "consumer") -> None:
        if variant not in _VARIANTS:
            raise ValueError(f"variant is '{variant}'; allowed: {', '.join(_VARIANTS)}")
        self._consumer = variant == "consumer"
        self.needs_outputs = not self._consumer

    def score(self, group: ChannelGroup, context: ScoringContext) -> Tensor:
        """Return weight times activation of each channel of the group, [num_channels]."""

        def values(member: Member) -> Tensor | None:
            statistics = statistics_of(context, member, "inputs" if self._consumer else "outputs")
            if statistics is None:
                return None
            module = context.graph.model.get_submodule(member.layer)
            weights = read_weights(module) if self._consumer else _computing_weights(module)
            return weights.double().cpu() * statistics.root_mean_square

        layers = readers(group) if self._consumer else producers(group)
        return average_over_layers(group, layers, values, reduce="sum")


def _computing_weights(module: nn.Module) -> Tensor:
    """Return, for each output channel of a layer, the sum of the absolute weights that compute it, [C]."""
    weight = cast(Tensor, module.weight).detach().abs()
    return _sum_in_groups(module, weight) if getattr(module, "transposed", False) else weight.flatten(1).sum(dim=1)


def read_weights(module: nn.Module) -> Tensor:
    """Return, for each input channel of a layer, the sum of the absolute weights that read it, [C].

    Queries and keys are read with weight 1.
    """
    if isinstance(module, HeadChannels):
        return torch.ones(module.num_channels)
    if isinstance(module, nn.MultiheadAttention):
        return module.in_proj_weight.detach().abs().sum(dim=0)
    weight = cast(Tensor, module.weight).detach().abs()
    return weight.flatten(1).sum(dim=1) if getattr(module, "transposed", False) else _sum_in_groups(module, weight)


def _sum_in_groups(module: nn.Module, weight: Tensor) -> Tensor:
    """Return the sum of a weight [A, B / groups, ...] for each of the B channels of its second dimension."""
    groups = int(getattr(module, "groups", 1))
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).sum(dim=(1, 3)).flatten()
