"""The section `task`: what the networks of a study are for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from cleanai_ray.config.messages import name_among
from cleanai_ray.config.section import Section
from cleanai_ray.errors import StudyError
from cleanai_ray.registry import TASKS, can_merge, named_callable, num_required

if TYPE_CHECKING:
    from cleanai_ray.config.study import Study

CLASSIFICATION = "classification"

_NUM_SIZES = {"language_modelling": (1,), "regression": (1, 3), "multilabel_classification": (1, 3)}
"""How many numbers `model.input_shape` may have, where it is not channels, height and width."""

_TAUGHT = (CLASSIFICATION, "multilabel_classification", "segmentation", "language_modelling")
"""Tasks whose models can learn from the answers of the dense model."""

_UNSMOOTHED = ("regression", "detection")
"""Tasks whose loss has no label smoothing."""


class TaskSection(Section):
    """The purpose of the networks: the task decides on loss, score and the data sets that fit."""

    name: str = Field(CLASSIFICATION, description="A name of `cleanai list tasks`.")
    loss: str | None = Field(
        None,
        description="`package.module:function`, called with a model's outputs and the targets of a batch: the mean "
        "loss to train by, in place of the task's.",
    )
    metric: str | None = Field(
        None,
        description="`package.module:function`, called with all predictions and targets, or a class with update and "
        "compute: the score to compare by, in place of the task's.",
    )

    @field_validator("name", mode="after")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name != CLASSIFICATION and name not in TASKS.names():
            raise ValueError(f"task.name: '{name}' is not a task; {name_among(name, TASKS.names())}")
        return name

    @model_validator(mode="after")
    def _check_own(self) -> TaskSection:
        for key in ("loss", "metric"):
            name = getattr(self, key)
            if name is None:
                continue
            try:
                named_callable(name, f"task.{key}")
            except StudyError as error:
                raise ValueError(str(error)) from None
        if self.loss is not None and self.name == "detection":
            raise ValueError(
                f"task.loss is '{self.loss}'; allowed for task detection: null, since detectors compute their own loss"
            )
        return self

    @property
    def is_classification(self) -> bool:
        """True for classification whose right answers are counted: not where it has a metric of its own."""
        return self.name == CLASSIFICATION and self.metric is None

    @property
    def title(self) -> str:
        """The task in error messages."""
        return f"{self.name} with a metric of its own" if self.metric is not None else self.name

    @property
    def scores_in_shares(self) -> bool:
        """True if several processes can each score a share: by a function of all predictions, or objects that merge."""
        if self.metric is None:
            return True
        function = named_callable(self.metric, "task.metric")
        if num_required(function) != 0:
            return True
        try:
            return can_merge(function())
        except Exception:  # the task says what is wrong with it
            return True


def check_task(study: Study) -> None:
    """Check that the other sections suit the task.

    Raises:
        ValueError: On the first key that does not; it says what is allowed.
    """
    task, shape = study.task, study.model.input_shape
    name, title = task.name, task.title
    allowed = _NUM_SIZES.get(name, (3,))
    if len(shape) not in allowed:
        numbers = " or ".join(f"{count} number{'s' if count > 1 else ''}" for count in allowed)
        raise ValueError(f"model.input_shape is {list(shape)}; allowed for task {name}: {numbers}")
    smoothing = study.finetune.label_smoothing if study.fine_tunes else 0.0
    if task.loss is not None and smoothing:
        raise ValueError(f"finetune.label_smoothing is {smoothing:g}; allowed with a task.loss of your own: 0")
    if task.is_classification:
        return
    found = next(((key, value, usual) for key, value, usual in _settings(study) if value != usual), None)
    if found is not None:
        key, value, usual = found
        raise ValueError(f"{key} is {value}; allowed for task {title}: {'null' if usual is None else usual}")
    workers = study.finetune.num_workers
    if study.fine_tunes and workers not in (1, "auto") and not task.scores_in_shares:
        raise ValueError(
            f"finetune.num_workers is {workers}; allowed for task.metric '{task.metric}', whose objects have no "
            "merge_state that can put them together: 1 or auto"
        )
    if smoothing and name in _UNSMOOTHED:
        raise ValueError(f"finetune.label_smoothing is {smoothing:g}; allowed for task {title}: 0")
    if study.sweep.controls is not None:
        raise ValueError(f"sweep.controls is given; allowed for task {title}: null")
    if study.finetune.distillation is not None and name not in _TAUGHT:
        raise ValueError(f"finetune.distillation is set; allowed for task {title}: null")


def _settings(study: Study) -> list[tuple[str, Any, Any]]:
    """Return keys with their values and the only value that is allowed for tasks other than classification."""
    others = [bits for bits in study.sweep.quantization if bits != "none"]
    return [
        ("model.expected_accuracy", study.model.expected_accuracy, None),
        ("sweep.quantization", others[0] if others else "none", "none"),
        ("evaluation.precision", study.evaluation.precision, "float32"),
    ]
