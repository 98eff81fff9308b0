"""Models whose weights are not yet, or not only, what their parameters say; and layers that keep their width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from cleanai_ray.errors import PruningError

_HOOKS: dict[type, tuple[str, str]] = {
    BasePruningMethod: ("a mask of torch.nn.utils.prune", "torch.nn.utils.prune.remove(layer, 'weight')"),
    WeightNorm: ("torch.nn.utils.weight_norm", "torch.nn.utils.remove_weight_norm(layer)"),
    SpectralNorm: ("torch.nn.utils.spectral_norm", "torch.nn.utils.remove_spectral_norm(layer)"),
}
"""Hooks that compute a weight before each pass: what they are, and what makes the weight a parameter again."""


_MOST_NAMES = 6
"""Layers that one sentence names."""


def require_parameters(model: nn.Module) -> None:
    """Refuse a model whose layers compute their weights in hooks, or have no shape yet.

    Raises:
        PruningError: When it has such a layer; the message names it, and what to do.
    """
    for name, module in model.named_modules():
        if any(isinstance(value, UninitializedParameter) for value in module.parameters(recurse=False)):
            raise PruningError(f"layer '{name}' has no shape yet; run the model once on an input before it is pruned")
        for hook in module._forward_pre_hooks.values():
            for kind, (found, remedy) in _HOOKS.items():
                if isinstance(hook, kind):
                    raise PruningError(f"layer '{name}' computes its weight by {found}; needed first: {remedy}")


def parametrized_layers(model: nn.Module) -> dict[str, str]:
    """Return why each layer with a parametrised weight keeps its width, by name."""
    return {
        name: f"its weight is parametrised ({', '.join(module.parametrizations)}); it can be narrowed after "
        "torch.nn.utils.parametrize.remove_parametrizations"
        for name, module in model.named_modules()
        if is_parametrized(module)
    }


def _listed(names: Sequence[str]) -> str:
    others = len(names) - _MOST_NAMES
    return ", ".join(map(repr, names[:_MOST_NAMES])) + (f" and {others} others" if others > 0 else "")


def told_together(reasons: Mapping[str, str]) -> list[str]:
    """Return sentences about layers that keep their width, one for those with the same reason.

    Args:
        reasons: The reason of each layer, by its name.
    """
    layers: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        layers.setdefault(reason, []).append(name)
    return [
        f"layer '{names[0]}' keeps its width: {reason}"
        if len(names) == 1
        else f"{len(names)} layers ({_listed(names)}) keep their width: {reason}"
        for reason, names in layers.items()
    ]
