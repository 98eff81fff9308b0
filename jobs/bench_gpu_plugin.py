"""A method that asserts on the device: the plug-in of a study of `bench_gpu.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from cleanai_ray.graph.graph import ChannelGroup
from cleanai_ray.importance.base import ImportanceMethod, ScoringContext
from cleanai_ray.registry import METHODS


@METHODS.register("device_assert")
class DeviceAssert(ImportanceMethod):
    """Asserts on the device, after which its process can use no GPU any more."""

    def score(self, group: ChannelGroup, context: ScoringContext) -> Tensor:
        """Raise what torch raises for an index that is out of bounds on a GPU."""
        if torch.cuda.is_available():
            values = torch.zeros(1, device="cuda")
            values[torch.tensor([7], device="cuda")].sum().item()
        raise RuntimeError("CUDA error: device-side assert triggered")
