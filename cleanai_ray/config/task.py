"""The section `task`: what the networks of a study are for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from cleanai_ray.config.messages import name_among
from cleanai_ray.config.section import Section
from cleanai_ray.registry import TASKS

if TYPE_CHECKING:
    from cleanai_ray.config.study import Study

CLASSIFICATION = "classification"

_NUM_SIZES = {"language_modelling": (1,), "regression": (1, 3)}
"""How many numbers `model.input_shape` may have, where it is not channels, height and width."""

_TAUGHT = ("segmentation", "language_modelling")
"""Tasks besides classification whose models can learn from the answers of the dense model."""


class TaskSection(Section):
    """The purpose of the networks: the task decides on loss, score and the data sets that fit."""

    name: str = Field(CLASSIFICATION, description="A name of `cleanai list tasks`.")

    @field_validator("name", mode="after")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name != CLASSIFICATION and name not in TASKS.names():
            raise ValueError(f"task.name: '{name}' is not a task; {name_among(name, TASKS.names())}")
        return name

    @property
    def is_classification(self) -> bool:
        """True for image classification."""
        return self.name == CLASSIFICATION


def check_task(study: Study) -> None:
    """Check that the other sections suit the task.

    Raises:
        ValueError: On the first key that does not; it says what is allowed.
    """
    name, shape = study.task.name, study.model.input_shape
    allowed = _NUM_SIZES.get(name, (3,))
    if len(shape) not in allowed:
        numbers = " or ".join(f"{count} number{'s' if count > 1 else ''}" for count in allowed)
        raise ValueError(f"model.input_shape is {list(shape)}; allowed for task {name}: {numbers}")
    if study.task.is_classification:
        return
    found = next(((key, value, usual) for key, value, usual in _settings(study) if value != usual), None)
    if found is not None:
        key, value, usual = found
        raise ValueError(f"{key} is {value}; allowed for task {name}: {'null' if usual is None else usual}")
    if study.finetune.label_smoothing and name in ("regression", "detection") and study.fine_tunes:
        raise ValueError(f"finetune.label_smoothing is {study.finetune.label_smoothing:g}; allowed for task {name}: 0")
    if study.sweep.controls is not None:
        raise ValueError(f"sweep.controls is given; allowed for task {name}: null")
    if study.finetune.distillation is not None and name not in _TAUGHT:
        raise ValueError(f"finetune.distillation is set; allowed for task {name}: null")


def _settings(study: Study) -> list[tuple[str, Any, Any]]:
    """Return keys with their values and the only value that is allowed for tasks other than classification."""
    others = [bits for bits in study.sweep.quantization if bits != "none"]
    return [
        ("model.expected_accuracy", study.model.expected_accuracy, None),
        ("sweep.quantization", others[0] if others else "none", "none"),
        ("evaluation.precision", study.evaluation.precision, "float32"),
    ]
