"""Scoring and fine-tuning as a library: without study files, and without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError
from torch import Tensor, nn

from cleanai_ray.config.finetune import FineTuneSection
from cleanai_ray.config.messages import describe
from cleanai_ray.evaluation.scoring import score
from cleanai_ray.tasks.base import Task, find_task
from cleanai_ray.training.context import LocalContext, TrainingContext, TrainingError
from cleanai_ray.training.data import Batches, TrainingData
from cleanai_ray.training.distillation import Supervision
from cleanai_ray.training.fine_tune import FineTuneResult
from cleanai_ray.training.fine_tune import fine_tune as train

evaluate = score


def fine_tune(
    model: nn.Module,
    batches: Sequence[tuple[Tensor, Any] | Tensor],
    validation: Sequence[tuple[Tensor, Any] | Tensor],
    *,
    task: str | Task = "classification",
    teacher: nn.Module | None = None,
    seed: int = 0,
    context: TrainingContext | None = None,
    **options: Any,
) -> FineTuneResult:
    """Train a model in place; it ends with the weights of its best epoch, or with its own where none was better.

    Args:
        model: The model, on the device of `context`.
        batches: Pairs (inputs, targets); every epoch reads all of them in an order of its own. Without labels, inputs
            alone: with a teacher and `distillation={"weight": 1.0}`.
        validation: Pairs (inputs, targets) that decide which epoch is the best; inputs alone with a teacher,
            whose answers then count as right.
        task: What the model is for, as in `prune`.
        teacher: The dense model, for `distillation`.
        seed: Seed of the order and of everything random in an epoch.
        context: Device, reports and checkpoints; by default the CPU and neither.
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
    _require_batches("batches", batches)
    _require_batches("validation", validation)

    def epoch_batches(epoch: int) -> Batches:
        order = np.random.default_rng([seed, epoch]).permutation(len(batches))
        return (_with_targets(batches[position]) for position in order)

    return train(
        model,
        section=section,
        data=TrainingData(
            train_batches=epoch_batches,
            steps_per_epoch=len(batches),
            validation_batches=lambda: map(_with_targets, validation),
        ),
        context=context or LocalContext(),
        seed=seed,
        supervision=Supervision(task=find_task(task), teacher=teacher),
    )


def _with_targets(batch: tuple[Tensor, Any] | Tensor) -> tuple[Tensor, Any]:
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[0], Tensor):
        return batch[0], batch[1]
    raise TrainingError(
        f"a batch is a {type(batch).__name__}; allowed: a pair (inputs, targets), or a tensor of inputs"
    )


def _require_batches(name: str, batches: Any) -> None:
    if isinstance(batches, Tensor) or not hasattr(batches, "__len__"):
        raise TrainingError(f"{name} is a {type(batches).__name__}; allowed: a sequence of batches, as a list is")
    if not len(batches):
        raise TrainingError(f"{name} is empty; needed: at least one batch")
