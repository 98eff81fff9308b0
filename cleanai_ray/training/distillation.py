"""The training loss: labels, the dense model's outputs, or both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cleanai_ray.finetune_section import FineTuneSection
from cleanai_ray.tasks.base import Task
from cleanai_ray.tasks.classification import Classification
from cleanai_ray.training.context import TrainingError

Objective = Callable[[Tensor, Any, Any], Tensor]
"""(inputs, outputs, targets) -> scalar loss."""


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 * KL(softmax(teacher / T) || softmax(student / T)), the mean over samples and positions, in nats.

    T^2 keeps the gradient's size independent of T (Hinton et al. 2015, Distilling the Knowledge in a Neural Network).

    Args:
        student: Logits [N, classes, ...] that learn.
        teacher: Logits [N, classes, ...] to learn from.
        temperature: T > 0.
    """
    student, teacher = _rows(student), _rows(teacher)
    divergence = functional.kl_div(
        functional.log_softmax(student.float() / temperature, dim=1),
        functional.log_softmax(teacher.float() / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return divergence * temperature**2


def _rows(logits: Tensor) -> Tensor:
    """Return logits [N, classes, ...] as [N * positions, classes]."""
    return logits if logits.ndim == 2 else logits.movedim(1, -1).flatten(0, -2)


def build_objective(section: FineTuneSection, teacher: nn.Module | None, task: Task | None = None) -> Objective:
    """Return the loss that a section asks for.

    Without distillation it is the task's loss of the targets, with label smoothing. With distillation it is
    weight * distillation_loss + (1 - weight) * the task's loss, and with weight 1 the targets are not read.

    Args:
        section: Label smoothing and distillation.
        teacher: The dense model, in evaluation mode on the training device; not used without distillation.
        task: What the model is for; classification by default.

    Raises:
        TrainingError: When there is distillation but no teacher.
    """
    distillation = section.distillation
    chosen = task or Classification()

    def target_loss(outputs: Any, targets: Any) -> Tensor:
        return chosen.loss(outputs, targets, section.label_smoothing)

    if distillation is None:
        return lambda inputs, outputs, targets: target_loss(outputs, targets)
    if teacher is None:
        raise TrainingError("finetune.distillation is set but there is no teacher: a dense model is needed")

    def mixed_loss(inputs: Tensor, outputs: Any, targets: Any) -> Tensor:
        logits = chosen.logits(outputs)
        with torch.no_grad():
            taught = chosen.logits(teacher(inputs))
        loss = distillation.weight * distillation_loss(logits, taught, distillation.temperature)
        if distillation.weight < 1.0:
            loss = loss + (1.0 - distillation.weight) * target_loss(outputs, targets)
        return loss

    return mixed_loss
