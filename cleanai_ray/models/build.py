"""Building the network of a study's model section, in evaluation mode."""

from __future__ import annotations

import difflib

import torch
from torch import Tensor, nn

from cleanai_ray.config.model_names import ModelName
from cleanai_ray.config.sections import ModelSection, TransformSection
from cleanai_ray.config.source_facts import facts_of
from cleanai_ray.errors import ModelError
from cleanai_ray.models.factory import build_from_factory
from cleanai_ray.models.family import ModelFamily, TorchvisionFamily, find_classifier, one_line, tell_new_head
from cleanai_ray.models.huggingface_models import HuggingFaceFamily
from cleanai_ray.models.outputs import with_scores
from cleanai_ray.models.source import SourcedFamily
from cleanai_ray.models.timm_models import TimmFamily
from cleanai_ray.models.weights import PUBLISHED_CLASSES, has_other_head, load_pretrained, load_weights
from cleanai_ray.registry import MODELS
from cleanai_ray.tasks.base import Task

_SOURCES: dict[str, type[SourcedFamily]] = {"timm": TimmFamily, "hf": HuggingFaceFamily}


def _sourced(section: ModelSection) -> SourcedFamily | None:
    """Return the model of another library that a section names, or None."""
    name = ModelName.parse(section.name)
    return None if name is None else _SOURCES[name.source](name, section.options)


def is_from_source(section: ModelSection) -> bool:
    """Return whether a model is one of timm or of Hugging Face."""
    return ModelName.parse(section.name) is not None


def _family_of(name: str) -> ModelFamily:
    if name in MODELS.names():
        family: ModelFamily = MODELS.get(name)()
        return family
    import torchvision  # as slow as torch itself: only for its own models

    available = torchvision.models.list_models(module=torchvision.models)
    if name in available:
        return type(name, (TorchvisionFamily,), {"name": name})()
    close = difflib.get_close_matches(name, [*MODELS.names(), *available], n=5, cutoff=0.5)
    hint = f" (close: {', '.join(dict.fromkeys(close))})" if close else ""
    raise ModelError(
        f"model.name '{name}' is unknown; allowed: {', '.join(MODELS.names())}, "
        f"any torchvision classification model, timm:NAME or hf:NAME{_in_timm(name) or hint}"
    )


def _in_timm(name: str) -> str:
    """Return what to say of a name that timm knows; "" where it does not, or is not installed."""
    try:
        import timm
    except ImportError:
        return ""
    return f"; timm has it: 'timm:{name}'" if timm.is_model(name.partition(".")[0]) else ""


def _construct(section: ModelSection) -> nn.Module:
    if section.factory is not None:
        return build_from_factory(section.factory, num_classes=section.num_classes, options=section.options)
    sourced = _sourced(section)
    if sourced is not None:
        return sourced.build(num_classes=section.num_classes, input_shape=section.input_shape)
    family = _family_of(str(section.name))
    reserved = sorted({"num_classes", "input_shape"} & set(section.options))
    if reserved:
        raise ModelError(f"model.options holds '{reserved[0]}'; it is set by model.{reserved[0]}")
    return family.build(num_classes=section.num_classes, input_shape=section.input_shape, **section.options)


_SCORES_CLASSES = ("classification", "multilabel_classification")
"""Tasks whose models return one number a class."""


def _with_scores(model: nn.Module, section: ModelSection) -> nn.Module:
    """Return a model that was run once, as one that returns a tensor of class scores."""
    what, shape = f"model '{section.name or section.factory}'", (1, section.num_classes)
    example = example_input(section)
    try:
        with torch.no_grad():
            outputs = model(example)
    except Exception as error:
        raise ModelError(
            f"{what} does not run on model.input_shape {list(section.input_shape)}: {one_line(error)[:300]}"
        ) from error
    model = with_scores(model, outputs, shape, output=section.output, what=what)
    with torch.no_grad():
        scores = outputs if isinstance(outputs, Tensor) else model(example)
    if tuple(scores.shape) != shape:
        raise ModelError(
            f"{what} maps one image to outputs of shape {list(scores.shape)}; expected {list(shape)}, from "
            "model.num_classes"
        )
    return model


def build_model(section: ModelSection | str, *, seed: int = 0, task: Task | None = None) -> nn.Module:
    """Build the dense model of a study, on the CPU and in evaluation mode.

    Torch's global random state is left as it was. The model is run once, on a random input, to check its output. A
    model that returns a dict, a tuple or a `ModelOutput` comes back as a view that returns the class scores: the same
    modules and weights under the same names.

    Args:
        section: The study's `model`, or a name that it can have.
        seed: Seed of the random initialisation, where `weights` is null or a classifier is new.
        task: What the model is for, classification by default; of another task, the output is not checked here.

    Raises:
        ModelError: When name, options, input shape and weights do not fit together; one sentence says which.
    """
    section = ModelSection(name=section) if isinstance(section, str) else section
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = (_pretrained(section) if section.weights == "pretrained" else _construct(section)).eval()
        if section.weights not in (None, "pretrained"):
            load_weights(model, section.weights, section.weights_key, may_lack_head=section.train is not None)
        if task is None or task.name in _SCORES_CLASSES:
            model = _with_scores(model, section)
    return model


def _pretrained(section: ModelSection) -> nn.Module:
    """Return the model with the weights of its source."""
    if section.factory is not None:
        raise ModelError(
            "model.weights is 'pretrained', which is for models of torchvision, timm and Hugging Face; "
            "allowed with model.factory: the path of a weights file, or null"
        )
    sourced = _sourced(section)
    if sourced is not None:
        return sourced.build_pretrained(
            num_classes=section.num_classes, input_shape=section.input_shape, will_train=section.train is not None
        )
    model, name = _construct(section), str(section.name)
    if load_pretrained(model, _family_of(name), section.num_classes):
        tell_new_head(name, section.num_classes, PUBLISHED_CLASSES, will_train=section.train is not None)
    return model


def needs_new_head(section: ModelSection) -> bool:
    """Return whether a model's weights file fits but for the number of classes, so that `model.train` is needed.

    Raises:
        ModelError: When the model cannot be built, or the file cannot be read.
    """
    assert section.weights is not None
    with torch.random.fork_rng(devices=[]):
        model = _construct(section.model_copy(update={"weights": None}))
    return has_other_head(model, section.weights, section.weights_key)


def has_published_weights(name: str) -> bool:
    """Return whether there are published weights for a model, of timm, Hugging Face or torchvision.

    timm knows many architectures that nobody has published weights of, and a folder may hold a configuration alone.

    Raises:
        ModelError: When the name is unknown.
    """
    sourced = ModelName.parse(name)
    if sourced is not None:
        return facts_of(sourced).has_weights
    return _family_of(name).published_transform() is not None


def published_transform(section: ModelSection) -> TransformSection | None:
    """Return the preprocessing of a model's pretrained weights; None for a model without.

    Models of timm and Hugging Face have one whatever their weights are.

    Raises:
        ModelError: When the name is unknown.
    """
    sourced = _sourced(section)
    if sourced is not None:
        return sourced.published_transform()
    if section.weights != "pretrained" or section.name is None:
        return None
    return _family_of(section.name).published_transform()


def class_names(section: ModelSection) -> tuple[str, ...]:
    """Return the names of a model's classes, in its order; empty where its source says none, or its head is new."""
    sourced, is_random = _sourced(section), section.train is not None and section.weights is None
    if sourced is None or is_random or sourced.facts.num_classes != section.num_classes:
        return ()
    return sourced.facts.class_names


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
    sourced = _sourced(section)
    if sourced is not None:
        return sourced.heads(model, section.num_classes)
    classifier = find_classifier(model, section.num_classes)
    return () if classifier is None else (classifier,)


def example_input(section: ModelSection, batch_size: int = 1, task: Task | None = None) -> Tensor:
    """Return standard normal inputs [batch_size, C, H, W], or what the task makes of them, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(batch_size, *section.input_shape, generator=generator)
    return noise if task is None else task.as_inputs(noise, section.num_classes)
