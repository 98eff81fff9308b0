"""torchvision's VGG-16 with batch-norm (Simonyan and Zisserman 2015)."""

from __future__ import annotations

from cleanai_ray.models.family import TorchvisionFamily
from cleanai_ray.registry import MODELS


@MODELS.register("vgg16_bn")
class VGG16BN(TorchvisionFamily):
    """VGG-16 with batch-norm (torchvision), no shortcuts."""

    name = "vgg16_bn"
    classifier = "classifier.6"
