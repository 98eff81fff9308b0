"""Random training transforms of a whole batch at once, drawn from torch's global generator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def random_crop(images: Tensor, padding: int) -> Tensor:
    """Pad images [N, C, H, W] with zeros and cut each at its own random place to its old size.

    The content moves by at most `padding` pixels in each direction.
    """
    count, channels, height, width = images.shape
    padded = functional.pad(images, [padding] * 4)
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1))
    rows = (top + torch.arange(height)).view(count, 1, height, 1)
    columns = (left + torch.arange(width)).view(count, 1, 1, width)
    return padded[torch.arange(count).view(-1, 1, 1, 1), torch.arange(channels).view(1, -1, 1, 1), rows, columns]


def random_flip(images: Tensor) -> Tensor:
    """Mirror each of the images [N, C, H, W] left to right with probability one half."""
    chosen = torch.rand(len(images)) < 0.5
    return torch.where(chosen.view(-1, 1, 1, 1), images.flip(-1), images)
