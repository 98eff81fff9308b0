"""A model whose weights and computation are bfloat16."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cleanai_ray.nn.copying import copied
from cleanai_ray.nn.hooks import require_no_hooks


class Bfloat16Model(nn.Module):
    """A copy of a model in bfloat16, which takes and returns float32.

    Floating-point parameters and buffers are cast, running statistics included. A processor without bfloat16
    instructions computes the same, but slower than in float32.

    Args:
        model: The model, which is not changed.

    Raises:
        EvaluationError: When a hook is left on the model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        require_no_hooks(model)
        self.model = copied(model).to(torch.bfloat16).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Return the output [N, ...], float32, for images [N, ...]."""
        output: Tensor = self.model(images.to(torch.bfloat16))
        return output.float()
