"""A small U-Net (Ronneberger et al. 2015) for segmentation: `model.factory: cleanai_ray.models.small_unet:build`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def _block(in_channels: int, out_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for read in (in_channels, out_channels):
        convolution = nn.Conv2d(read, out_channels, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class SmallUNet(nn.Module):
    """Two halvings, two doublings, and what was seen at each size beside what comes back to it.

    Args:
        num_classes: Classes of a pixel.
        channels: Channels of the images.
        width: Channels at full size; twice and four times as many at the halves.
    """

    def __init__(self, num_classes: int, channels: int, width: int) -> None:
        super().__init__()
        self.first, self.second = _block(channels, width), _block(width, 2 * width)
        self.third = _block(2 * width, 4 * width)
        self.fourth, self.fifth = _block(6 * width, 2 * width), _block(3 * width, width)
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, C, H, W], height and width multiples of 4, to logits [N, num_classes, H, W]."""
        full = self.first(images)
        half = self.second(functional.max_pool2d(full, 2))
        quarter = self.third(functional.max_pool2d(half, 2))
        half = self.fourth(torch.cat([functional.interpolate(quarter, scale_factor=2.0), half], dim=1))
        return self.head(self.fifth(torch.cat([functional.interpolate(half, scale_factor=2.0), full], dim=1)))


def build(num_classes: int, channels: int = 1, width: int = 16) -> SmallUNet:
    """Return the network; `channels` and `width` are `model.options`."""
    return SmallUNet(num_classes, channels, width)
