from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from cleanai_ray.config.finetune import FineTuneSection
from cleanai_ray.nn.losses import distillation_loss
from cleanai_ray.training.context import TrainingError
from cleanai_ray.training.distillation import BatchLoss, Supervision, build_objective

STUDENT = [[1.0, 3.0, -2.0], [0.5, 0.0, 0.25]]
TEACHER = [[2.0, 1.0, 0.0], [-1.0, 4.0, 1.0]]
LABELS = [0, 1]


def softmax(row: list[float], temperature: float) -> list[float]:
    exponentials = [math.exp(value / temperature) for value in row]
    return [value / sum(exponentials) for value in exponentials]


def slow_distillation(temperature: float) -> float:
    total = 0.0
    for student, teacher in zip(STUDENT, TEACHER, strict=True):
        q, p = softmax(student, temperature), softmax(teacher, temperature)
        total += sum(p[k] * math.log(p[k] / q[k]) for k in range(3))
    return temperature**2 * total / len(STUDENT)


def slow_cross_entropy(smoothing: float) -> float:
    total = 0.0
    for row, label in zip(STUDENT, LABELS, strict=True):
        log_q = [math.log(value) for value in softmax(row, 1.0)]
        target = [smoothing / 3 + (1 - smoothing) * (k == label) for k in range(3)]
        total -= sum(target[k] * log_q[k] for k in range(3))
    return total / len(STUDENT)


class Constant(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.tensor(TEACHER)


def loss(teacher: nn.Module | None = None, labels: list[int] = LABELS, **fields: object) -> float:
    return lesson(teacher, torch.tensor(labels), **fields).loss.item()


def lesson(teacher: nn.Module | None, labels: torch.Tensor | None, **fields: object) -> BatchLoss:
    objective = build_objective(FineTuneSection.model_validate(fields), Supervision(teacher=teacher))
    return objective(torch.zeros(2, 1), torch.tensor(STUDENT), labels)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_distillation_loss_is_the_formula(temperature: float) -> None:
    found = distillation_loss(torch.tensor(STUDENT), torch.tensor(TEACHER), temperature)
    assert found.item() == pytest.approx(slow_distillation(temperature), rel=1e-5)


def test_an_agreeing_student_has_no_loss() -> None:
    shifted = torch.tensor(TEACHER) + 7.0
    assert distillation_loss(shifted, torch.tensor(TEACHER), 2.0).item() == pytest.approx(0.0, abs=1e-6)


def test_label_smoothing_spreads_the_target_over_all_classes() -> None:
    assert loss(label_smoothing=0.2) == pytest.approx(slow_cross_entropy(0.2), rel=1e-5)
    assert loss() == pytest.approx(slow_cross_entropy(0.0), rel=1e-5)


def test_weight_mixes_both_losses() -> None:
    found = loss(Constant(), distillation={"temperature": 2.0, "weight": 0.3}, label_smoothing=0.1)
    assert found == pytest.approx(0.3 * slow_distillation(2.0) + 0.7 * slow_cross_entropy(0.1), rel=1e-5)


def test_weight_one_reads_no_label() -> None:
    fields = {"distillation": {"temperature": 2.0, "weight": 1.0}}
    # 99 is no class: cross_entropy would raise.
    assert loss(Constant(), [99, 99], **fields) == pytest.approx(slow_distillation(2.0), rel=1e-5)


def test_without_labels_the_answers_of_the_dense_model_are_right() -> None:
    fields = {"distillation": {"temperature": 2.0, "weight": 1.0}}
    found = lesson(Constant(), None, **fields)
    assert found.loss.item() == pytest.approx(slow_distillation(2.0), rel=1e-5)
    assert found.targets.tolist() == [0, 1]  # the largest of each row of TEACHER
    assert lesson(Constant(), torch.tensor([2, 2]), **fields).targets.tolist() == [2, 2]


@pytest.mark.parametrize("fields", [{}, {"distillation": {"weight": 0.5}}])
def test_labels_that_the_loss_reads_must_be_there(fields: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=r"inputs alone; needed: targets, .*finetune\.distillation"):
        lesson(Constant(), None, **fields)


def test_distillation_without_a_teacher_is_refused() -> None:
    with pytest.raises(TrainingError, match="no teacher"):
        loss(distillation={"temperature": 2.0})
