"""torchvision's EfficientNet-B4 (Tan and Le 2019)."""

from __future__ import annotations

from cleanai_ray.models.family import TorchvisionFamily
from cleanai_ray.registry import MODELS


@MODELS.register("efficientnet_b4")
class EfficientNetB4(TorchvisionFamily):
    """EfficientNet-B4 (torchvision), published for 380 x 380 pixels."""

    name = "efficientnet_b4"
    classifier = "classifier.1"
