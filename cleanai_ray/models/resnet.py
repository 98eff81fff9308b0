"""torchvision's ResNet-18 and ResNet-50, optionally with a stem for small images."""

from __future__ import annotations

from typing import Any

from torch import nn

from cleanai_ray.errors import ModelError
from cleanai_ray.models.family import Shape, TorchvisionFamily
from cleanai_ray.registry import MODELS


class ResNetFamily(TorchvisionFamily):
    """A torchvision ResNet."""

    classifier = "fc"

    def build(self, *, num_classes: int, input_shape: Shape, cifar_stem: bool = False, **options: Any) -> nn.Module:
        """Return the network.

        Args:
            num_classes: Outputs of the classifier.
            input_shape: Channels, height and width of one input.
            cifar_stem: A 3x3 convolution of stride 1 and no max-pooling, for images of about 32 x 32 pixels.
            **options: Further arguments of torchvision's ResNet.
        """
        if not isinstance(cifar_stem, bool):
            raise ModelError(f"model.options.cifar_stem is {cifar_stem!r}; allowed: true, false")
        model = super().build(num_classes=num_classes, input_shape=input_shape, **options)
        if cifar_stem:
            stem = nn.Conv2d(input_shape[0], 64, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
            model.conv1 = stem
            model.maxpool = nn.Identity()
        return model


@MODELS.register("resnet18")
class ResNet18(ResNetFamily):
    """ResNet-18 (torchvision); option cifar_stem: true for small images."""

    name = "resnet18"


@MODELS.register("resnet50")
class ResNet50(ResNetFamily):
    """ResNet-50 (torchvision); option cifar_stem: true for small images."""

    name = "resnet50"
