"""Small networks of residual blocks without norms, which differ in their work and in how much they matter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block whose branch counts as much as its scale says."""

    def __init__(self, inner: int, scale: float) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(8, inner, 3, padding=1), nn.Conv2d(inner, 8, 3, padding=1)
        with torch.no_grad():
            self.two.weight.mul_(scale)
            self.two.bias.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(torch.relu(self.one(x)))


def blocks_in_a_row(blocks: Sequence[tuple[int, float]], between: Sequence[nn.Module] = ()) -> Any:
    """A stem of 8 channels, blocks of some inner channels and scales, whose names are 1, 2, ..., and a classifier."""
    torch.manual_seed(1)
    made = [Block(inner, scale) for inner, scale in blocks]
    stem, pool = nn.Conv2d(2, 8, 3, padding=1), nn.AdaptiveAvgPool2d(2)
    model = nn.Sequential(stem, *made, *between, nn.ReLU(), pool, nn.Flatten(), nn.Linear(32, 4)).eval()
    with torch.no_grad():
        model[-1].weight.mul_(8)
    return model
