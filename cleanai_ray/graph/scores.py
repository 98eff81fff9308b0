"""Scores of channels by torch-pruning's importance classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor

from cleanai_ray.errors import PruningError
from cleanai_ray.graph.group import ChannelGroup


def scores_of(whole: Any, group: ChannelGroup, importance: str, options: Mapping[str, Any]) -> Tensor:
    """Return the scores of a group, [num_channels], float64, as torch-pruning normalises them.

    Args:
        whole: The group as torch-pruning has it.
        group: The group.
        importance: Class name in `torch_pruning.importance`.
        options: Arguments of the class.

    Raises:
        PruningError: When torch-pruning has no score for the group.
    """
    if group.num_units == 1:  # Nothing to choose from; torch-pruning cannot index blocks of one input channel.
        return torch.ones(group.num_channels, dtype=torch.float64)
    try:
        scores = getattr(tp.importance, importance)(**options)(whole)
    except (IndexError, RuntimeError) as error:
        raise PruningError(
            f"torch-pruning's {importance} cannot score the group of layer '{group.name}': {error}"
        ) from error
    if scores is None:
        raise PruningError(f"torch-pruning's {importance} has no score for the group of layer '{group.name}'")
    return scores[: group.num_channels].detach().double().cpu()
