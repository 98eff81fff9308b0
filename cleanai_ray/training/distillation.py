"""The training loss: labels, the dense model's outputs, or both."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from cleanai_ray.finetune_section import FineTuneSection
from cleanai_ray.training.context import TrainingError

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(images, logits, labels) -> scalar loss."""


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 * KL(softmax(teacher / T) || softmax(student / T)), the mean over samples, in nats.

    T^2 keeps the gradient's size independent of T (Hinton et al. 2015, Distilling the Knowledge in a Neural Network).

    Args:
        student: Logits [N, classes] that learn.
        teacher: Logits [N, classes] to learn from.
        temperature: T > 0.
    """
    divergence = functional.kl_div(
        functional.log_softmax(student.float() / temperature, dim=1),
        functional.log_softmax(teacher.float() / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return divergence * temperature**2


def build_objective(section: FineTuneSection, teacher: nn.Module | None) -> Objective:
    """Return the loss that a section asks for.

    Without distillation it is the cross-entropy of the labels with label smoothing. With distillation it is
    weight * distillation_loss + (1 - weight) * cross-entropy, and with weight 1 the labels are not read.

    Args:
        section: Label smoothing and distillation.
        teacher: The dense model, in evaluation mode on the training device; not used without distillation.

    Raises:
        TrainingError: When there is distillation but no teacher.
    """
    distillation = section.distillation

    def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits.float(), labels, label_smoothing=section.label_smoothing)

    if distillation is None:
        return lambda images, logits, labels: label_loss(logits, labels)
    if teacher is None:
        raise TrainingError("finetune.distillation is set but there is no teacher: a dense model is needed")

    def mixed_loss(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            target = teacher(images)
        loss = distillation.weight * distillation_loss(logits, target, distillation.temperature)
        if distillation.weight < 1.0:
            loss = loss + (1.0 - distillation.weight) * label_loss(logits, labels)
        return loss

    return mixed_loss
