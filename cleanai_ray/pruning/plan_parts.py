"""Parts of a plan, and what a smaller model takes over from the dense one."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from cleanai_ray.config.digests import digest
from cleanai_ray.graph.graph import ChannelGroup
from cleanai_ray.graph.tying import shared_parameters
from cleanai_ray.nn.open_layers import names_of_opened
from cleanai_ray.pruning.plan import PLAIN, TIED, GroupPlan


def group_plan(group: ChannelGroup, kept: np.ndarray) -> GroupPlan:
    """Return the plan of a group of the dense model from the channels that it kept."""
    return GroupPlan(
        name=group.name,
        num_channels=group.num_channels,
        num_blocks=group.num_blocks,
        removed=tuple(int(channel) for channel in np.setdiff1d(np.arange(group.num_channels), kept)),
        outputs=tuple(dict.fromkeys(member.layer for member in group.members if member.side != "in")),
        inputs=tuple(dict.fromkeys(member.layer for member in group.members if member.side == "in")),
    )


def identify(model: nn.Module, example_inputs: Any, *, ties: bool = True) -> dict[str, Any]:
    """Return the identity of an architecture: class, digest of its tensors' shapes, shapes of the example inputs.

    `tokens` is among it where these are integers, `plain` where layers were opened (their names), and `tied` where
    layers share parameters (the names of each), unless none of these ties outlives a cut.
    """
    opened, tied = names_of_opened(model), [list(names) for names in shared_parameters(model)]
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    inputs = [example_inputs] if isinstance(example_inputs, Tensor) else list(example_inputs)
    return {
        "class": type(model).__qualname__,
        "shapes": digest(shapes),
        "example_inputs": [list(value.shape) for value in inputs],
        **({PLAIN: opened} if opened else {}),
        **({TIED: tied} if tied and ties else {}),
        **({} if all(value.is_floating_point() for value in inputs) else {"tokens": True}),
    }
