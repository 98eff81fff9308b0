"""The training loss: labels, the dense model's outputs, or both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cleanai_ray.config.finetune import FineTuneSection
from cleanai_ray.nn.losses import distillation_loss
from cleanai_ray.tasks.base import Task
from cleanai_ray.tasks.classification import Classification
from cleanai_ray.training.context import TrainingError


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """The sources that a model learns from: the targets of a task, the answers of a teacher, or both.

    Attributes:
        task: What the model is for.
        teacher: The dense model, for distillation and where targets are missing; its weights and modes are not changed.
    """

    task: Task = field(default_factory=Classification)
    teacher: nn.Module | None = None


class BatchLoss(NamedTuple):
    """The loss of a training batch, and the targets that count as right.

    Attributes:
        loss: The loss, a scalar.
        targets: The batch's targets; the teacher's answers where it has none.
    """

    loss: Tensor
    targets: Any


Objective = Callable[[Tensor, Any, Any], BatchLoss]
"""(inputs, outputs, targets, or None where there are none) -> loss and targets of a batch."""


def build_objective(section: FineTuneSection, supervision: Supervision) -> Objective:
    """Return the loss that a section asks for.

    Without distillation it is the task's loss of the targets, with label smoothing. With distillation it is
    weight * distillation_loss + (1 - weight) * the task's loss; with weight 1, targets are not read and may be missing.

    Args:
        section: Label smoothing and distillation.
        supervision: The task and the teacher, in evaluation mode on the training device; without distillation the
            teacher is not used.

    Raises:
        TrainingError: When there is distillation but no teacher. The loss raises it when it reads targets that are
            missing.
    """
    distillation = section.distillation
    task, teacher = supervision.task, supervision.teacher

    def target_loss(outputs: Any, targets: Any) -> Tensor:
        if targets is None:
            raise TrainingError(
                "a batch has inputs alone; needed: targets, or a teacher and finetune.distillation with weight 1"
            )
        return task.loss(outputs, targets, section.label_smoothing)

    if distillation is None:
        return lambda inputs, outputs, targets: BatchLoss(target_loss(outputs, targets), targets)
    if teacher is None:
        raise TrainingError("finetune.distillation is set but there is no teacher: a dense model is needed")

    def mixed_loss(inputs: Tensor, outputs: Any, targets: Any) -> BatchLoss:
        logits = task.logits(outputs)
        with torch.no_grad():
            taught = task.logits(teacher(inputs))
        loss = distillation.weight * distillation_loss(logits, taught, distillation.temperature)
        if distillation.weight < 1.0:
            loss = loss + (1.0 - distillation.weight) * target_loss(outputs, targets)
        return BatchLoss(loss, taught.argmax(1) if targets is None else targets)

    return mixed_loss


def with_answers(
    batches: Iterable[tuple[Tensor, Any]], supervision: Supervision, device: torch.device
) -> Iterator[tuple[Tensor, Any]]:
    """Yield batches, with the teacher's answers where targets are missing (None).

    Args:
        batches: Pairs of inputs and targets.
        supervision: The task and the teacher, in evaluation mode on the device.
        device: Where the teacher is.

    Raises:
        TrainingError: When targets are missing and there is no teacher.
    """
    task, teacher = supervision.task, supervision.teacher
    for inputs, targets in batches:
        if targets is None:
            if teacher is None:
                raise TrainingError("a validation batch has inputs alone; needed: targets, or a teacher")
            with torch.no_grad():
                targets = task.logits(teacher(inputs.to(device, non_blocking=True))).argmax(1)
        yield inputs, targets
