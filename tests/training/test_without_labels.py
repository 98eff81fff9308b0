"""Fine-tuning on inputs alone: the dense model's answers stand where labels would."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fine_tuning_cases import MakeNet, assert_same, run
from torch import Tensor, nn

import cleanai_ray as cleanai
from cleanai_ray.config.study import parse_study
from cleanai_ray.stages.dense import prepare_dense
from cleanai_ray.stages.finetune import fine_tune_part
from cleanai_ray.stages.workspace import Workspace, open_workspace
from cleanai_ray.training.context import LocalContext, TrainingError

ALONE = {"distillation": {"temperature": 2.0, "weight": 1.0}}

FORMS = "allowed: a tensor of inputs, a pair (inputs, targets), or a dict"
ALLOWED = "allowed: a sequence of batches, as a list is, or a loader that knows its length"


@pytest.fixture(scope="module")
def teacher(digits: Any) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    run(model, digits, epochs=3)
    return model.eval()


def answers(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).argmax(1)


def test_inputs_alone_train_as_with_the_answers_of_the_dense_model(
    digits: Any, make_net: MakeNet, teacher: nn.Module
) -> None:
    found, expected = make_net(1), make_net(1)

    def told(batches: Any, answer: Any) -> Iterator[tuple[Tensor, Any]]:
        return ((images, answer(images)) for images, _ in batches)

    def options(answer: Any) -> dict[str, Any]:
        return {
            "train_batches": lambda epoch: told(digits.train_batches(epoch), answer),
            "validation_batches": lambda: told(digits.validation_batches(), answer),
            "teacher": teacher,
            "epochs": 2,
            **ALONE,
        }

    without = run(found, digits, **options(lambda images: None))
    with_answers = run(expected, digits, **options(lambda images: answers(teacher, images)))
    assert_same(found.state_dict(), expected.state_dict())
    for first, second in zip(without.history, with_answers.history, strict=True):
        assert {**first, "images_per_second": 0} == {**second, "images_per_second": 0}
    assert without.history[-1]["validation_accuracy"] > 0.7


def test_the_library_takes_tensors(digits: Any, make_net: MakeNet, teacher: nn.Module) -> None:
    student = make_net(1)
    images = [images for images, _ in digits.train_batches(1)]
    held_out = torch.cat([images for images, _ in digits.validation_batches()])
    result = cleanai.fine_tune(student, images, [held_out], teacher=teacher, epochs=3, learning_rate=0.1, **ALONE)
    agreement = float((answers(student.eval(), held_out) == answers(teacher, held_out)).double().mean())
    assert agreement > 0.7
    assert agreement == pytest.approx(max(row["validation_accuracy"] for row in result.history))


def test_a_teacher_may_answer_for_validation_alone(digits: Any, make_net: MakeNet, teacher: nn.Module) -> None:
    """And batches are asked for when they are needed, each epoch anew."""
    student, asked = make_net(1), []

    class Lazy(list[Any]):
        def __getitem__(self, position: Any) -> Any:
            asked.append(position)
            return super().__getitem__(position)

    labelled = Lazy(digits.train_batches(1))
    held_out = torch.cat([images for images, _ in digits.validation_batches()])
    result = cleanai.fine_tune(student, labelled, [held_out], teacher=teacher, epochs=2, learning_rate=0.1)
    assert sorted(asked[:12]) == sorted(asked[12:]) == list(range(12))
    agreement = float((answers(student.eval(), held_out) == answers(teacher, held_out)).double().mean())
    assert agreement == pytest.approx(max(row["validation_accuracy"] for row in result.history))


def test_what_is_missing_is_told(digits: Any, make_net: MakeNet, teacher: nn.Module) -> None:
    images = [images for images, _ in digits.train_batches(1)]
    labelled = digits.validation_batches()
    with pytest.raises(TrainingError, match=r"inputs alone; needed: targets, .*finetune\.distillation"):
        cleanai.fine_tune(make_net(), images, labelled, epochs=1)
    with pytest.raises(TrainingError, match=r"validation batch .*inputs alone; needed: targets, or a teacher$"):
        cleanai.fine_tune(make_net(), list(digits.train_batches(1)), images, epochs=1)
    with pytest.raises(TrainingError, match=r"inputs alone; needed: targets, .*finetune\.distillation"):
        cleanai.fine_tune(make_net(), images, labelled, teacher=teacher, epochs=1, distillation={"weight": 0.5})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batches": []}, "batches is empty; needed: at least one batch"),
        ({"validation": []}, "validation is empty; needed: at least one batch"),
        ({"batches": torch.zeros(4, 1, 8, 8)}, f"batches is a Tensor; {ALLOWED}"),
        ({"batches": iter([])}, f"batches is a list_iterator; {ALLOWED}"),
        ({"batches": [[1]]}, "the inputs of a batch are a int; allowed: one tensor"),
        ({"batches": [[1, 2, 3]]}, f"a batch is a list of 3; {FORMS}"),
        ({"validation": [None]}, f"a batch is a NoneType; {FORMS}"),
        ({"teacher": "dense"}, "teacher is a str; allowed: the dense model, a torch module"),
    ],
)
def test_wrong_arguments_are_told_in_a_sentence(
    digits: Any, make_net: MakeNet, changed: dict[str, Any], message: str
) -> None:
    plain = {"batches": list(digits.train_batches(1)), "validation": digits.validation_batches()}
    with pytest.raises(TrainingError) as caught:
        cleanai.fine_tune(make_net(), **{**plain, **changed}, epochs=1)
    assert str(caught.value) == message


class Noting(Workspace):
    """A workspace that notes which images of which role are asked for, and whose labels are all the same."""

    asked: list[tuple[str, bool, list[int]]]

    def batches(self, role: str, **options: Any) -> Iterator[tuple[Tensor, Tensor]]:
        self.asked.append((role, options.get("trains", False), options["positions"].tolist()))
        return ((images, torch.full_like(labels, 3)) for images, labels in super().batches(role, **options))


def test_a_study_learns_from_calibration_images_and_reads_no_label() -> None:
    study = parse_study(
        {
            "model": {"name": "resnet20", "num_classes": 10, "input_shape": [1, 8, 8], "train": {"epochs": 2}},
            "data": {"name": "digits", "batch_size": 32, "calibration": {"samples": 103}},
            "sweep": {"methods": ["magnitude"], "ratios": [0.3]},
            "finetune": {"epochs": 2, "data": "calibration", "learning_rate": 0.05, **ALONE},
            "evaluation": {"samples": 100, "latency": None},
        }
    )
    opened = open_workspace(study.model_dump_json(), "cpu")
    weights = prepare_dense(opened).weights
    plain = opened.dense_model(weights)
    tuned = []
    for kind in (Workspace, Noting):
        workspace = kind(study=study, source=opened.source, roles=opened.roles, device=opened.device)
        object.__setattr__(workspace, "asked", [])
        model = copy.deepcopy(plain)
        nn.init.normal_(model.fc.weight, std=0.1, generator=torch.Generator().manual_seed(0))
        result = fine_tune_part(workspace, study.trials()[0], model, plain, LocalContext())
        tuned.append((model, result))
    (first, result), (second, with_other_labels) = tuned
    assert_same(first.state_dict(), second.state_dict())
    assert result.best_epoch == with_other_labels.best_epoch > 0
    # Every fifth of the 103 images validates, at the start and after both epochs; the others train.
    validating = [position for position in range(103) if position % 5 == 4]
    training = [position for position in range(103) if position % 5 != 4]
    judged, trained = ("calibration", False, validating), ("calibration", True, training)
    assert workspace.asked == [judged, trained, judged, trained, judged]
    with torch.no_grad():
        images = torch.cat([images for images, _ in opened.batches("calibration")])[validating]
    agreement = float((answers(first.eval(), images) == answers(plain, images)).double().mean())
    assert agreement == pytest.approx(max(row["validation_accuracy"] for row in result.history))
