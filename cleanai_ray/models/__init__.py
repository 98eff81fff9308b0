"""Dense models: registered families, those of torchvision, timm and Hugging Face, a factory of the user's own."""

from cleanai_ray.models.build import (
    build_model,
    class_names,
    example_input,
    ignored_layers,
    is_from_source,
    published_transform,
)
from cleanai_ray.models.family import ModelFamily, TorchvisionFamily
from cleanai_ray.models.weights import load_weights

__all__ = [
    "ModelFamily",
    "TorchvisionFamily",
    "build_model",
    "class_names",
    "example_input",
    "ignored_layers",
    "is_from_source",
    "load_weights",
    "published_transform",
]
