"""Losses between the outputs of two models."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


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
