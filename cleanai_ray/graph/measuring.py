"""Index mappings that are measured: which inputs of a layer change when one channel of a group is disturbed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cleanai_ray.graph.group import ChannelGroup, Member
from cleanai_ray.graph.silencing import channel_axis
from cleanai_ray.nn.copying import leaving_no_trace
from cleanai_ray.nn.modes import evaluation_mode

_SIGNS = (1.0, -1.0)
"""Disturbances of both signs, since an activation lets only one pass."""


@torch.no_grad()
def measured(model: nn.Module, inputs: Tensor, group: ChannelGroup) -> ChannelGroup | None:
    """Return a group whose readers have the indices that were measured, or None where that is unclear.

    Every channel has a binary number. For each digit, the channels in which it is 1 are disturbed together, then the
    others. An input that changes in exactly one of the two, for every digit, belongs to the channel with that number.

    Args:
        model: The model; it is left as it was.
        inputs: Its input.
        group: A group with the right producers.
    """
    readers = {member.layer: member for member in group.members if member.side == "in"}
    digits = max(1, (group.num_channels - 1).bit_length())
    quiet = _inputs_of(model, inputs, group, readers, None)
    changed: dict[str, list[np.ndarray]] = {name: [] for name in readers}
    for digit in range(digits):
        for value in (1, 0):
            chosen = ((np.arange(group.num_channels) >> digit) & 1) == value
            seen = [_inputs_of(model, inputs, group, readers, sign * chosen) for sign in _SIGNS]
            for name, before in quiet.items():
                changed[name].append(np.any([_changes(model, name, before, each[name]) for each in seen], axis=0))
    found = {name: _decoded(np.stack(flags).reshape(digits, 2, -1), group) for name, flags in changed.items() if flags}
    if len(found) != len(readers) or any(each is None for each in found.values()):
        return None
    members = [
        replace(member, channels=found[member.layer][0], roots=found[member.layer][1])  # type: ignore[index]
        if member.layer in found and member.side == "in"
        else member
        for member in group.members
    ]
    return replace(group, members=tuple(members))


def _decoded(changed: np.ndarray, group: ChannelGroup) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the inputs that belong to the group and their channels, of flags [digits, 1 or 0, inputs]."""
    belongs = changed.any(axis=(0, 1))
    if not belongs.any() or not (changed[:, 0] ^ changed[:, 1])[:, belongs].all():
        return None
    channels = np.flatnonzero(belongs)
    roots = (changed[:, 0, channels] << np.arange(len(changed))[:, None]).sum(axis=0)
    return (channels, roots) if len(np.unique(roots)) == group.num_channels else None


def _changes(model: nn.Module, name: str, before: Tensor, after: Tensor) -> np.ndarray:
    axis = channel_axis(model.get_submodule(name), before)
    apart = (after - before).abs().movedim(axis, 0).flatten(1).amax(dim=1)
    return (apart > 1e-6 * before.abs().max().clamp_min(1e-6)).cpu().numpy()


def _inputs_of(
    model: nn.Module, inputs: Tensor, group: ChannelGroup, readers: Mapping[str, Member], disturbed: np.ndarray | None
) -> dict[str, Tensor]:
    """Return what layers read when channels of a group are disturbed; a layer that runs several times is left out."""
    found: dict[str, list[Tensor]] = {name: [] for name in readers}
    handles = []
    try:
        for name in readers:
            layer = model.get_submodule(name)
            handles.append(
                layer.register_forward_pre_hook(lambda _, args, name=name: found[name].append(args[0].clone()))
            )
        for member in group.members:
            if disturbed is not None and member.side == "out" and member.layer in dict(model.named_modules()):
                layer = model.get_submodule(member.layer)
                handles.append(layer.register_forward_hook(_disturbing(member, disturbed)))
        with evaluation_mode(model), leaving_no_trace(model):
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: values[0] for name, values in found.items() if len(values) == 1}


def _disturbing(member: Member, disturbed: np.ndarray) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        noise = (0.5 + torch.rand(output.shape, generator=generator)).to(output) * (1 + 3 * output.abs().max())
        axis = channel_axis(module, output)
        strength = np.zeros(output.shape[axis])
        strength[member.channels] = disturbed[member.roots]
        shape = [1] * output.dim()
        shape[axis] = -1
        return output + noise * torch.as_tensor(strength).to(output).reshape(shape)

    return hook
