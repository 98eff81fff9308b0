"""Building the network of a study's model section, in evaluation mode."""

from __future__ import annotations

import difflib

import torch
from torch import Tensor, nn

from cleanai_ray.config.sections import ModelSection, TransformSection
from cleanai_ray.errors import ModelError
from cleanai_ray.models.factory import build_from_factory
from cleanai_ray.models.family import ModelFamily, TorchvisionFamily, find_classifier, one_line
from cleanai_ray.models.weights import load_pretrained, load_weights
from cleanai_ray.registry import MODELS
from cleanai_ray.tasks.base import Task


def _family_of(name: str) -> ModelFamily:
    if name in MODELS.names():
        return MODELS.get(name)()
    import torchvision  # as slow as torch itself: only for its own models

    available = torchvision.models.list_models(module=torchvision.models)
    if name in available:
        return type(name, (TorchvisionFamily,), {"name": name})()
    close = difflib.get_close_matches(name, [*MODELS.names(), *available], n=5, cutoff=0.5)
    hint = f" (close: {', '.join(close)})" if close else ""
    raise ModelError(
        f"model.name '{name}' is unknown; allowed: {', '.join(MODELS.names())}, "
        f"or any torchvision classification model{hint}"
    )


def _construct(section: ModelSection) -> nn.Module:
    if section.factory is not None:
        return build_from_factory(section.factory, num_classes=section.num_classes, options=section.options)
    family = _family_of(str(section.name))
    reserved = sorted({"num_classes", "input_shape"} & set(section.options))
    if reserved:
        raise ModelError(f"model.options holds '{reserved[0]}'; it is set by model.{reserved[0]}")
    return family.build(num_classes=section.num_classes, input_shape=section.input_shape, **section.options)


def _check_outputs(model: nn.Module, section: ModelSection) -> None:
    what = f"model '{section.name or section.factory}'"
    try:
        with torch.no_grad():
            outputs = model(example_input(section))
    except Exception as error:
        raise ModelError(
            f"{what} does not run on model.input_shape {list(section.input_shape)}: {one_line(error)[:300]}"
        ) from error
    if not isinstance(outputs, Tensor):
        raise ModelError(f"{what} returns {type(outputs).__name__}; allowed: one tensor of class scores")
    if tuple(outputs.shape) != (1, section.num_classes):
        raise ModelError(
            f"{what} maps one image to outputs of shape {list(outputs.shape)}; "
            f"expected [1, {section.num_classes}], from model.num_classes"
        )


def build_model(section: ModelSection, *, seed: int = 0, task: Task | None = None) -> nn.Module:
    """Build the dense model of a study, on the CPU and in evaluation mode.

    Torch's global random state is left as it was. The model is run once, on a random input, to check its output.

    Args:
        section: The study's `model`.
        seed: Seed of the random initialisation, where `weights` is null or a classifier is new.
        task: What the model is for, classification by default; of another task, the output is not checked here.

    Raises:
        ModelError: When name, options, input shape and weights do not fit together; one sentence says which.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = _construct(section).eval()
        if section.weights == "pretrained":
            if section.factory is not None:
                raise ModelError(
                    "model.weights is 'pretrained', which is for torchvision's models; "
                    "allowed with model.factory: the path of a weights file, or null"
                )
            load_pretrained(model, _family_of(str(section.name)), section.num_classes)
        elif section.weights is not None:
            load_weights(model, section.weights)
        if task is None or task.name == "classification":
            _check_outputs(model, section)
    return model


def published_transform(section: ModelSection) -> TransformSection | None:
    """Return the preprocessing of a model's pretrained weights; None for a model without.

    Raises:
        ModelError: When the name is unknown.
    """
    if section.weights != "pretrained" or section.name is None:
        return None
    return _family_of(section.name).published_transform()


def ignored_layers(section: ModelSection) -> tuple[str, ...]:
    """Return the names of the modules that must keep their output channels: the classifier, and those a family pins.

    Unless a family names it, the classifier is the last Linear or Conv2d with one output a class.

    Raises:
        ModelError: When the model cannot be built.
    """
    if section.name is not None and section.name in MODELS.names():
        return _family_of(section.name).ignored_layers()
    with torch.random.fork_rng(devices=[]):
        model = _construct(section)
    classifier = find_classifier(model, section.num_classes)
    return () if classifier is None else (classifier,)


def example_input(section: ModelSection, batch_size: int = 1, task: Task | None = None) -> Tensor:
    """Return standard normal inputs [batch_size, C, H, W], or what the task makes of them, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(batch_size, *section.input_shape, generator=generator)
    return noise if task is None else task.as_inputs(noise, section.num_classes)
