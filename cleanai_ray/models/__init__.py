"""Dense models: registered families, any torchvision classifier, or a factory of the user's own."""

from cleanai_ray.models.build import build_model, example_input, ignored_layers, published_transform
from cleanai_ray.models.family import ModelFamily, TorchvisionFamily
from cleanai_ray.models.weights import load_weights

__all__ = [
    "ModelFamily",
    "TorchvisionFamily",
    "build_model",
    "example_input",
    "ignored_layers",
    "load_weights",
    "published_transform",
]
