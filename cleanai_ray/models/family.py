"""The interface of a model family, and torchvision's models as families."""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from torch import nn

from cleanai_ray.config.images import TransformSection
from cleanai_ray.errors import ModelError
from cleanai_ray.nn.notices import notice, remark

Shape = tuple[int, ...]


def one_line(error: BaseException) -> str:
    """Return an exception's message as one line, without its full stop."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def tell_new_head(what: str, num_classes: int, published: int, *, will_train: bool) -> None:
    """Say in a line that a pretrained model has a head at random: a warning, unless the model will be trained."""
    say = remark if will_train else notice
    say(
        f"the head of {what} is new: model.num_classes is {num_classes}, and the source has {published} classes; it is "
        "at random until model.train trains it"
    )


def check_options(function: Callable[..., Any], options: dict[str, Any], *, name: str, given: tuple[str, ...]) -> None:
    """Refuse options that a function does not take.

    Args:
        function: The function that the options are passed to.
        options: `model.options` of the study.
        name: What error messages call the function.
        given: Arguments that the caller passes itself and options cannot set.

    Raises:
        ModelError: On the first option that is not accepted; the message lists those that are.
    """
    parameters = inspect.signature(function).parameters.values()
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    positional_only = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.VAR_KEYWORD,
    )
    allowed = [p.name for p in parameters if p.kind not in positional_only and p.name not in given]
    for option in options:
        if option in given or (option not in allowed and not open_ended):
            listed = ", ".join(allowed) or "none"
            raise ModelError(f"model.options holds '{option}', which {name} does not take; allowed: {listed}")


class ModelFamily(ABC):
    """One name that `model.name` can hold. Subclasses are registered in `cleanai_ray.registry.MODELS`."""

    classifier: ClassVar[str]
    """Module name of the layer whose outputs are the class scores."""

    pinned: ClassVar[tuple[str, ...]] = ()
    """Further modules that must keep their number of output channels."""

    @abstractmethod
    def build(self, *, num_classes: int, input_shape: Shape, **options: Any) -> nn.Module:
        """Return a randomly initialised model, drawn from torch's global CPU generator.

        Args:
            num_classes: Outputs of the classifier.
            input_shape: Channels, height and width of one input.
            **options: `model.options` of the study.

        Raises:
            ModelError: When the family cannot be built for the shape or an option.
        """

    def pretrained(self) -> nn.Module:
        """Return the family's published model, for 1000 classes.

        Raises:
            ModelError: When there is none.
        """
        raise ModelError(
            f"model.weights is 'pretrained', but {type(self).__name__} has no published weights; "
            "allowed: the path of a weights file, or null"
        )

    def published_transform(self) -> TransformSection | None:
        """Return the preprocessing that the published weights were evaluated with, all of it; None if there is none."""
        return None

    def ignored_layers(self) -> tuple[str, ...]:
        """Return the names of the modules that must keep their output channels."""
        return (self.classifier, *self.pinned)


class TorchvisionFamily(ModelFamily):
    """A torchvision classification model by its name."""

    name: ClassVar[str]
    """The model's name in torchvision."""

    def build(self, *, num_classes: int, input_shape: Shape, **options: Any) -> nn.Module:
        """Return the model for a number of classes, with a new stem unless the input has three channels."""
        arguments = self.arguments(input_shape)
        clash = sorted(set(arguments) & set(options))
        if clash:
            raise ModelError(f"model.options holds '{clash[0]}', which follows from model.input_shape; remove it")
        import torchvision  # as slow to import as torch itself: only for its own models

        try:
            model = torchvision.models.get_model(
                self.name, weights=None, num_classes=num_classes, **arguments, **options
            )
        except (TypeError, ValueError, AssertionError) as error:
            raise ModelError(
                f"model '{self.name}' cannot be built with model.options {options} "
                f"and model.input_shape {list(input_shape)}: {one_line(error)}"
            ) from error
        if input_shape[0] != 3:
            replace_stem(model, input_shape[0])
        return model

    def arguments(self, input_shape: Shape) -> dict[str, Any]:
        """Return the arguments that follow from the input shape, or make the model return class scores only."""
        if self.name in ("googlenet", "inception_v3"):
            return {"aux_logits": False, "init_weights": True}
        if self.name.startswith("vit_"):
            return {"image_size": _square_size(self.name, input_shape)}
        if self.name.startswith("maxvit_"):
            return {"input_size": tuple(input_shape[1:])}
        return {}

    def pretrained(self) -> nn.Module:
        """Return the model with torchvision's default weights, downloaded unless they are cached."""
        import torchvision

        extra = {"aux_logits": False} if self.name in ("googlenet", "inception_v3") else {}
        return torchvision.models.get_model(self.name, weights=self._weights(), progress=False, **extra)

    def published_transform(self) -> TransformSection:
        """Return the preprocessing of torchvision's default weights; nothing is downloaded for it."""
        return transform_of(self._weights())

    def _weights(self) -> Any:
        import torchvision

        return torchvision.models.get_model_weights(self.name).DEFAULT


def transform_of(weights: Any) -> TransformSection:
    """Return the preprocessing of weights for classification, an entry of one of torchvision's enumerations."""
    preset = weights.transforms()
    return TransformSection(
        resize=preset.resize_size[0],
        crop=preset.crop_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def _square_size(name: str, input_shape: Shape) -> int:
    _, height, width = input_shape
    patch = int(name.rpartition("_")[2])
    if height != width or height % patch:
        raise ModelError(
            f"model.input_shape is {list(input_shape)}; allowed for {name}: height and width equal, "
            f"and a multiple of its patch size, {patch}"
        )
    return height


def replace_stem(model: nn.Module, in_channels: int) -> None:
    """Replace the first convolution by one that reads another number of channels (He et al. 2015, fan-out).

    Raises:
        ModelError: When the model does not begin with an ordinary convolution of three channels.
    """
    name, stem = next(((name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)), ("", None))
    if stem is None or stem.in_channels != 3 or stem.groups != 1:
        raise ModelError(
            f"model.input_shape has {in_channels} channels; allowed for {type(model).__name__}: 3, "
            "since it does not begin with a plain convolution that could be replaced"
        )
    new = nn.Conv2d(
        in_channels,
        stem.out_channels,
        stem.kernel_size,  # type: ignore[arg-type]
        stride=stem.stride,  # type: ignore[arg-type]
        padding=stem.padding,  # type: ignore[arg-type]
        dilation=stem.dilation,  # type: ignore[arg-type]
        bias=stem.bias is not None,
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)


def find_classifier(model: nn.Module, num_classes: int) -> str | None:
    """Return the name of the last Linear or Conv2d with one output a class, or None."""
    found = None
    for name, module in model.named_modules():
        outputs = getattr(module, "out_features", None) or getattr(module, "out_channels", None)
        if isinstance(module, (nn.Linear, nn.Conv2d)) and outputs == num_classes:
            found = name
    return found


def fit_positions(model: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """Interpolate the position embeddings of a vision transformer's state to a model's own image size."""
    published = sys.modules.get("torchvision.models.vision_transformer")  # imported already if the model is one of its
    if published is None or not isinstance(model, published.VisionTransformer):
        return state
    return dict(published.interpolate_embeddings(model.image_size, model.patch_size, dict(state)))
