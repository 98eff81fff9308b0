"""torchvision's MobileNetV2 (Sandler et al. 2018), optionally with a stem for small images."""

from __future__ import annotations

from typing import Any

from torch import nn

from cleanai_ray.errors import ModelError
from cleanai_ray.models.family import Shape, TorchvisionFamily
from cleanai_ray.registry import MODELS


@MODELS.register("mobilenet_v2")
class MobileNetV2(TorchvisionFamily):
    """MobileNetV2 (torchvision), inverted residuals with depthwise convolutions; option small_stem: true."""

    name = "mobilenet_v2"
    classifier = "classifier.1"

    def build(self, *, num_classes: int, input_shape: Shape, small_stem: bool = False, **options: Any) -> nn.Module:
        """Return the network.

        Args:
            num_classes: Outputs of the classifier.
            input_shape: Channels, height and width of one input.
            small_stem: The first convolution has stride 1, for images of about 32 x 32 pixels.
            **options: Further arguments of torchvision's MobileNetV2, for instance `width_mult`, and
                `inverted_residual_setting`, whose rows are expansion, channels, blocks and stride of a stage.
        """
        if not isinstance(small_stem, bool):
            raise ModelError(f"model.options.small_stem is {small_stem!r}; allowed: true, false")
        model = super().build(num_classes=num_classes, input_shape=input_shape, **options)
        if small_stem:
            stem = model.get_submodule("features.0.0")
            assert isinstance(stem, nn.Conv2d)
            stem.stride = (1, 1)
        return model
