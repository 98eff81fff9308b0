"""The section of a study file on the dense model: its source, its weights, and how it is trained without any."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, model_validator

from cleanai_ray.config.model_names import ModelName
from cleanai_ray.config.section import Section
from cleanai_ray.config.source_facts import facts_of
from cleanai_ray.errors import ModelError


class TrainSection(Section):
    """Training of the dense model by the study itself, from `model.weights`. The result is cached by digest."""

    epochs: PositiveInt = Field(20, description="Passes over the training samples.")
    batch_size: PositiveInt | None = Field(None, description="Images per step; null: data.batch_size.")
    optimizer: Literal["sgd", "adamw"] = Field(
        "sgd", description="SGD with Nesterov momentum, or AdamW, which transformers need."
    )
    learning_rate: float = Field(
        0.1,
        gt=0,
        description="Peak learning rate; AdamW needs about 0.002, and weights that were trained before about 0.01.",
    )
    weight_decay: float = Field(5e-4, ge=0, description="Weight decay, not on norms and biases.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Precision of the forward pass; auto: float32 on CPUs, bfloat16 on GPUs, float16 on those without.",
    )
    seed: int = Field(0, ge=0, description="Seed of random weights, or of a new head, and of the sample order.")


class ModelSection(Section):
    """The dense model: a registered name or a factory, and where its weights come from."""

    name: str | None = Field(
        None,
        description="A name of `cleanai list models`, any torchvision classification model, `timm:NAME` or `hf:NAME`; "
        "after timm: and hf: a folder, too.",
    )
    factory: str | None = Field(
        None, description="`package.module:function`, which is called with num_classes and options."
    )
    weights: str | None = Field(
        None,
        description="A safetensors file, state_dict or checkpoint, `pretrained` (the source's own; the default with "
        "timm: and hf: where `train` is null), or null: random weights.",
    )
    weights_key: str | None = Field(
        None,
        min_length=1,
        description="Which of several state dictionaries of a checkpoint to take: its key (model_ema), keys joined by "
        "full stops, or the words before its names; null: the one that fits.",
    )
    num_classes: PositiveInt = Field(
        10,
        description="Outputs of the classifier: classes; of a language model its vocabulary. With timm: and hf:, by "
        "default those of the source.",
    )
    input_shape: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = Field(
        (3, 224, 224),
        description="Channels, height, width of one input; of a language model its tokens, of a table its columns. "
        "With timm: and hf:, by default those of the source.",
    )
    output: str | Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Which of several outputs holds the class scores: a key or a place (keys joined by full stops); "
        "null: `logits`, or the only one of their shape.",
    )
    expected_accuracy: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="Accuracy that the dense model is known to have: one that scores more than 0.05 below it ends the "
        "study before anything is pruned.",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Further arguments of the builder or factory.")
    train: TrainSection | None = Field(
        None,
        description="How the study trains the dense model first, from the weights that `weights` names, or from random "
        "ones; null: the weights stay as they are.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_source(cls, given: Any) -> Any:
        """Give a model of timm or Hugging Face the weights, classes and inputs of its source, where none are given."""
        name = ModelName.parse(given.get("name")) if isinstance(given, dict) else None
        if name is None or not isinstance(given.get("options", {}), dict):
            return given
        filled = dict(given)
        if "weights" not in given and not given.get("train"):
            filled["weights"] = "pretrained"
        if "num_classes" not in given or "input_shape" not in given:
            try:
                facts = facts_of(name, given.get("options", {}))
            except ModelError as error:
                raise ValueError(str(error)) from None
            filled = {"num_classes": facts.num_classes, "input_shape": facts.input_shape, **filled}
        return filled

    @model_validator(mode="after")
    def _check(self) -> ModelSection:
        if self.name is None and self.factory is None:
            raise ValueError("model.name and model.factory are both null; needed: exactly one of them")
        if self.name is not None and self.factory is not None:
            raise ValueError(f"model.name is '{self.name}' and model.factory is '{self.factory}'; allowed: one of them")
        if self.factory is not None and not all(self.factory.partition(":")):
            raise ValueError(f"model.factory is '{self.factory}'; allowed: package.module:function")
        return self
