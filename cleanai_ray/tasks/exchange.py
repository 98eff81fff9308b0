"""What scorers of several processes exchange where a score is no sum."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed

from cleanai_ray.nn.modes import to_device


def of_all_processes(own: Any) -> list[Any]:
    """Return what each of torch's processes has, by rank, with its tensors on the CPU; all of them have to call it."""
    shares: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(shares, to_device(own, torch.device("cpu")))
    return shares
