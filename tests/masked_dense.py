"""The slow, obvious twin of a pruned transformer: the dense model, in which nothing that was removed has any effect."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cleanai_ray.nn.attention import HeadChannels
from cleanai_ray.nn.open_attention import open_attention


class MaskedNorm(nn.Module):
    """A layer norm over some of its channels; the others become zero."""

    def __init__(self, norm: nn.LayerNorm, kept: Tensor) -> None:
        super().__init__()
        self.norm, self.kept = norm, kept

    def forward(self, x: Tensor) -> Tensor:
        norm, kept = self.norm, self.kept
        part = functional.layer_norm(x[..., kept], (len(kept),), norm.weight[kept], norm.bias[kept], norm.eps)
        return torch.zeros_like(x).index_copy(x.dim() - 1, kept, part)


def masked(dense: nn.Module, kept_inputs: Any, kept_outputs: Any) -> nn.Module:
    """A copy of a dense model that ignores the channels which pruning removed."""
    twin = copy.deepcopy(open_attention(dense))
    for name, kept in kept_inputs.items():
        module = twin.get_submodule(name)
        if isinstance(module, (nn.Linear, HeadChannels)):
            stays = torch.zeros(module.in_features if isinstance(module, nn.Linear) else module.num_channels)
            stays[torch.as_tensor(kept)] = 1
            module.register_forward_pre_hook(lambda _, args, stays=stays: args[0] * stays)
    for name, kept in kept_outputs.items():
        module = twin.get_submodule(name)
        if isinstance(module, nn.LayerNorm):
            parent, _, leaf = name.rpartition(".")
            setattr(twin.get_submodule(parent), leaf, MaskedNorm(module, torch.as_tensor(kept)))
    return twin
