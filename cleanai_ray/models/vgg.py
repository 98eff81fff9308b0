"""VGG networks with batch-norm (Simonyan and Zisserman 2015): torchvision's VGG-16, and small ones for small images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.errors import ModelError
from cleanai_ray.models.family import ModelFamily, Shape, TorchvisionFamily, check_options
from cleanai_ray.registry import MODELS

_SMALL_LAYERS = (32, "M", 48, 48, "M", 96, 96, "M", 128)


@MODELS.register("vgg16_bn")
class VGG16BN(TorchvisionFamily):
    """VGG-16 with batch-norm (torchvision), no shortcuts."""

    name = "vgg16_bn"
    classifier = "classifier.6"


class SmallVGG(nn.Module):
    """3x3 convolutions with batch-norm and max-pooling, global average pooling, and a classifier with a hidden layer.

    Args:
        num_classes: Outputs of the classifier.
        in_channels: Channels of the images.
        layers: Output channels of each convolution, with `M` for a max-pooling that halves height and width.
        hidden: Width of the hidden layer of the classifier.
    """

    def __init__(self, num_classes: int, in_channels: int, layers: Sequence[int | str], hidden: int) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        width = in_channels
        for layer in layers:
            if isinstance(layer, str):
                parts.append(nn.MaxPool2d(2))
                continue
            convolution = nn.Conv2d(width, layer, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            parts += [convolution, nn.BatchNorm2d(layer), nn.ReLU(inplace=True)]
            width = layer
        self.features = nn.Sequential(*parts)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, C, H, W] to class scores [N, num_classes]."""
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


@MODELS.register("vgg_small")
class VGGSmall(ModelFamily):
    """VGG with batch-norm for small images; options layers (channels, M for max-pooling) and hidden."""

    classifier = "classifier.2"

    def build(
        self,
        *,
        num_classes: int,
        input_shape: Shape,
        layers: Sequence[int | str] = _SMALL_LAYERS,
        hidden: int = 128,
        **options: Any,
    ) -> nn.Module:
        """Return the network.

        Args:
            num_classes: Outputs of the classifier.
            input_shape: Channels, height and width of one input.
            layers: Output channels of each convolution, with `M` for a max-pooling.
            hidden: Width of the classifier's hidden layer.
            **options: None are allowed.

        Raises:
            ModelError: When an option is not allowed, or there are more poolings than the images can be halved.
        """
        check_options(lambda layers, hidden: None, options, name="vgg_small", given=())
        _check_layers(layers, input_shape)
        if not _is_width(hidden):
            raise ModelError(f"model.options.hidden is {hidden!r}; allowed: a whole number, at least 1")
        return SmallVGG(num_classes, input_shape[0], layers, hidden)


def _is_width(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_layers(layers: Any, input_shape: Shape) -> None:
    fits = isinstance(layers, (list, tuple)) and all(_is_width(layer) or layer == "M" for layer in layers)
    if not fits or not any(_is_width(layer) for layer in layers):
        raise ModelError(
            f"model.options.layers is {layers!r}; allowed: a list of channels, with M for each max-pooling, "
            "for instance [32, M, 64, 64]"
        )
    poolings = list(layers).count("M")
    if min(input_shape[1:]) < 2**poolings:
        raise ModelError(
            f"model.options.layers holds {poolings} max-poolings, and model.input_shape is {list(input_shape)}; "
            f"allowed: at least {2**poolings} pixels in height and width, or fewer poolings"
        )
