"""torchvision's vision transformer (Dosovitskiy et al. 2021)."""

from __future__ import annotations

from cleanai_ray.models.family import TorchvisionFamily
from cleanai_ray.registry import MODELS


@MODELS.register("vit_b_16")
class ViTB16(TorchvisionFamily):
    """ViT-B/16 (torchvision), a vision transformer; image_size follows input_shape."""

    name = "vit_b_16"
    classifier = "heads.head"
