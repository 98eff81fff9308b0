"""A small SSD (Liu et al. 2016) of torchvision for detection: `model.factory: cleanai_ray.models.small_ssd:build`."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


def _block(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class Backbone(nn.Module):
    """Features at an eighth and a sixteenth of the size of the images.

    Args:
        width: Channels at half of the size; four times as many at the features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(_block(3, width, 2), _block(width, 2 * width, 2), _block(2 * width, 2 * width, 1))
        self.eighth = nn.Sequential(_block(2 * width, 4 * width, 2), _block(4 * width, 4 * width, 1))
        self.sixteenth = nn.Sequential(_block(4 * width, 4 * width, 2), _block(4 * width, 4 * width, 1))
        self.out_channels = [4 * width, 4 * width]

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Map images [N, 3, H, W] to two maps of features."""
        eighth = self.eighth(self.stem(images))
        return OrderedDict([("0", eighth), ("1", self.sixteenth(eighth))])


def build(num_classes: int, size: int = 64, width: int = 16) -> nn.Module:
    """Return a detector of one stage with random weights; its arguments are `model.options`.

    Args:
        num_classes: Classes, the background included.
        size: Height and width of the images.
        width: Channels of the first layer.
    """
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.ssd import SSD

    anchors = DefaultBoxGenerator([[2], [2]], scales=[0.3, 0.45, 0.6], steps=[8, 16])
    return SSD(
        Backbone(width),
        anchors,
        (size, size),
        num_classes,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        detections_per_img=20,
        topk_candidates=50,
    )
