"""torchvision's DenseNet-121 (Huang et al. 2017)."""

from __future__ import annotations

from cleanai_ray.models.family import TorchvisionFamily
from cleanai_ray.registry import MODELS


@MODELS.register("densenet121")
class DenseNet121(TorchvisionFamily):
    """DenseNet-121 (torchvision), concatenating shortcuts."""

    name = "densenet121"
    classifier = "classifier"
