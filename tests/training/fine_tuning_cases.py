"""How the tests of fine-tuning call it, and how they look at what it did."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.config.finetune import FineTuneSection
from cleanai_ray.evaluation.accuracy import evaluate
from cleanai_ray.training.context import LocalContext
from cleanai_ray.training.data import TrainingData
from cleanai_ray.training.distillation import Supervision
from cleanai_ray.training.fine_tune import FineTuneResult, fine_tune

MakeNet = Callable[..., nn.Sequential]


def run(model: nn.Module, digits: Any, context: LocalContext | None = None, **fields: Any) -> FineTuneResult:
    arguments = {"seed": 0, "part": None}
    arguments |= {key: fields.pop(key) for key in list(fields) if key in arguments}
    read = {**digits.arguments(), "start_competes": True, "unseen_batches": None, "later_batches": None}
    read |= {key: fields.pop(key) for key in list(fields) if key in read}
    supervision = Supervision(teacher=fields.pop("teacher", None))
    section = FineTuneSection.model_validate({"learning_rate": 0.1, "early_stopping": None, **fields})
    return fine_tune(
        model,
        section=section,
        data=TrainingData(**read),
        context=context or LocalContext(),
        supervision=supervision,
        **arguments,
    )


def validation_accuracy(model: nn.Module, digits: Any) -> float:
    return evaluate(model, digits.validation_batches()).accuracy


def scripted(model: nn.Module, accuracies: list[float]) -> tuple[Callable[[], list[Any]], list[dict[str, Tensor]]]:
    """Validation whose accuracy at every call is chosen: labels are the model's own answers, some of them changed."""
    images = torch.rand(100, 1, 8, 8)
    snapshots: list[dict[str, Tensor]] = []

    def validation_batches() -> list[Any]:
        snapshots.append(copy.deepcopy(model.state_dict()))
        probe = copy.deepcopy(model).eval()
        with torch.no_grad():
            labels = probe(images).argmax(1)
        wrong = 100 - round(100 * accuracies[len(snapshots) - 1])
        labels[:wrong] = (labels[:wrong] + 1) % 10
        return [(images, labels)]

    return validation_batches, snapshots


def assert_same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == []
