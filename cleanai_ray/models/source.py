"""The interface of models that another library builds: with or without the weights that it has for them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import nn

from cleanai_ray.config.images import TransformSection
from cleanai_ray.config.model_names import ModelName
from cleanai_ray.config.source_facts import SourceFacts, facts_of, require_package
from cleanai_ray.errors import ModelError
from cleanai_ray.models.family import ModelFamily, Shape, find_classifier, tell_new_head
from cleanai_ray.nn.notices import notice


class SourcedFamily(ModelFamily):
    """A model of another library.

    Args:
        name: The model's name.
        options: `model.options` of the study.

    Raises:
        ModelError: When the library is not installed.
    """

    def __init__(self, name: ModelName, options: dict[str, Any]) -> None:
        require_package(name)
        self.name = name
        self.options = options

    def build(self, *, num_classes: int, input_shape: Shape, **options: Any) -> nn.Module:
        """Return the model with random weights."""
        return self.create(num_classes=num_classes, input_shape=input_shape, pretrained=False)

    def build_pretrained(self, *, num_classes: int, input_shape: Shape, will_train: bool = False) -> nn.Module:
        """Return the model with the weights of its source; a head of another size is new, and a line says so.

        The line is a warning unless the model will be trained.
        """
        model = self.create(num_classes=num_classes, input_shape=input_shape, pretrained=True)
        if self.facts.num_classes != num_classes:
            tell_new_head(str(self.name), num_classes, self.facts.num_classes, will_train=will_train)
        return model

    @abstractmethod
    def create(self, *, num_classes: int, input_shape: Shape, pretrained: bool) -> nn.Module:
        """Return the model.

        Raises:
            ModelError: When it cannot be built, or its weights cannot be reached.
        """

    @property
    def facts(self) -> SourceFacts:
        """What the source says of the model."""
        return facts_of(self.name, self.options)

    def published_transform(self) -> TransformSection:
        """Return the preprocessing that the source asks for, and note where this system's differs."""
        for sentence in self.facts.notes:
            notice(sentence)
        return self.facts.transform

    def heads(self, model: nn.Module, num_classes: int) -> tuple[str, ...]:
        """Return the names of the layers whose outputs are class scores."""
        found = find_classifier(model, num_classes)
        return () if found is None else (found,)

    def unreachable(self, error: BaseException, reason: str) -> ModelError:
        """Return the error that says what serves where weights cannot be downloaded."""
        return ModelError(
            f"model.weights is 'pretrained', and the weights of {self.name} cannot be loaded ({reason}); allowed "
            "without internet access: a folder in place of the name, a cache that holds them (HF_HOME, or cache_dir in "
            "model.options), the path of a weights file, or null"
        )
