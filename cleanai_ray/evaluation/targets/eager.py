"""Torch itself, operation by operation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cleanai_ray.evaluation.targets.base import Run, TargetBackend
from cleanai_ray.registry import TARGETS


@TARGETS.register("torch")
class TorchTarget(TargetBackend):
    """Torch itself, operation by operation; on GPUs, small batches time the launches more than the work."""

    def prepare(self, model: nn.Module, example: Tensor) -> Run:
        """Return a function that calls the model in inference mode."""
        moved, batch = self._moved(model, example)

        def run() -> object:
            with torch.inference_mode():
                return moved(batch)

        return run
