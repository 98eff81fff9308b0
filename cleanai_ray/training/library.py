"""Scoring and fine-tuning as a library: without study files, and without Ray."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from pydantic import ValidationError
from torch import Tensor, nn

from cleanai_ray.config.finetune import FineTuneSection
from cleanai_ray.config.messages import describe
from cleanai_ray.display.progress import current, with_progress
from cleanai_ray.evaluation.scoring import score
from cleanai_ray.statistics.batch_forms import in_form
from cleanai_ray.tasks.base import Task, find_task
from cleanai_ray.training.context import LocalContext, TrainingContext, TrainingError
from cleanai_ray.training.data import Batches, TrainingData
from cleanai_ray.training.distillation import Supervision
from cleanai_ray.training.fine_tune import FineTuneResult
from cleanai_ray.training.fine_tune import fine_tune as train

evaluate = score


@with_progress("fine-tuning")
def fine_tune(
    model: nn.Module,
    batches: Collection[Any],
    validation: Collection[Any],
    *,
    task: str | Task = "classification",
    teacher: nn.Module | None = None,
    seed: int = 0,
    context: TrainingContext | None = None,
    progress: bool | None = None,
    **options: Any,
) -> FineTuneResult:
    """Train a model in place; it ends with the weights of its best epoch, or with its own where none was better.

    Args:
        model: The model, on the device of `context`.
        batches: Pairs (inputs, targets) or dicts with both, in a list, which every epoch reads in an order of its own,
            or in a DataLoader, which orders them itself. Without labels, inputs alone: with a teacher and
            `distillation={"weight": 1.0}`.
        validation: Pairs (inputs, targets) that decide which epoch is the best; inputs alone with a teacher,
            whose answers then count as right.
        task: What the model is for, as in `prune`.
        teacher: The dense model, for `distillation`.
        seed: Seed of the order and of everything random in an epoch.
        context: Device, reports and checkpoints; by default the CPU and neither.
        progress: Whether to show a line of progress; by default in a terminal or a notebook.
        **options: Keys of a study's `finetune` section that concern one training of given batches, for instance
            `epochs`, `optimizer` and `learning_rate`.

    Raises:
        RegistryError: When the task is unknown.
        TrainingError: When an option is not allowed, or training cannot go on; see `training.fine_tune`.
    """
    try:
        section = FineTuneSection.model_validate(options)
    except ValidationError as error:
        raise TrainingError(describe(error, FineTuneSection)) from None
    if teacher is not None and not isinstance(teacher, nn.Module):
        raise TrainingError(f"teacher is a {type(teacher).__name__}; allowed: the dense model, a torch module")
    number = _number_of("batches", batches)
    _number_of("validation", validation)

    def epoch_batches(epoch: int) -> Batches:
        if not hasattr(batches, "__getitem__"):
            return map(counted, batches)
        order = np.random.default_rng([seed, epoch]).permutation(number)
        return (counted(batches[position]) for position in order)

    def counted(batch: Any) -> tuple[Tensor, Any]:
        line.advance()
        return _with_targets(batch)

    line = current()
    line.begin("fine-tuning", section.epochs * number)
    return train(
        model,
        section=section,
        data=TrainingData(
            train_batches=epoch_batches,
            steps_per_epoch=number,
            validation_batches=lambda: map(_with_targets, validation),
        ),
        context=context or LocalContext(on_row=lambda row: line.rename(_after_epoch(row))),
        seed=seed,
        supervision=Supervision(task=find_task(task), teacher=teacher),
    )


def _after_epoch(row: Mapping[str, Any]) -> str:
    scores = (name for name in row if name.startswith("validation_") and name != "validation_loss")
    found = ", ".join(f"{name.replace('_', ' ')} {row[name]:.4g}" for name in scores)
    return f"fine-tuning, after epoch {row['epoch']}: {found}"


def _with_targets(batch: Any) -> tuple[Tensor, Any]:
    found = in_form(batch, TrainingError)
    return (found, None) if isinstance(found, Tensor) else found


def _number_of(name: str, batches: Any) -> int:
    """Return the number of batches; a loader of an iterable data set has none."""
    try:
        number = 0 if isinstance(batches, Tensor) else len(batches)
    except TypeError:
        number = -1
    if isinstance(batches, Tensor) or number < 0:
        raise TrainingError(
            f"{name} is a {type(batches).__name__}; allowed: a sequence of batches, as a list is, or a loader that "
            "knows its length"
        )
    if not number:
        raise TrainingError(f"{name} is empty; needed: at least one batch")
    return number
