"""torchvision's MobileNetV2 (Sandler et al. 2018)."""

from __future__ import annotations

from cleanai_ray.models.family import TorchvisionFamily
from cleanai_ray.registry import MODELS


@MODELS.register("mobilenet_v2")
class MobileNetV2(TorchvisionFamily):
    """MobileNetV2 (torchvision), inverted residuals with depthwise convolutions."""

    name = "mobilenet_v2"
    classifier = "classifier.1"
