from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cleanai_ray import results
from cleanai_ray.errors import CleanAIError, EvaluationError
from cleanai_ray.evaluation.accuracy import evaluate
from cleanai_ray.sections import FineTuneSection, TrainSection
from cleanai_ray.training.context import LocalContext, TrainingError
from cleanai_ray.training.fine_tune import FineTuneResult, fine_tune
from cleanai_ray.training.train import train_dense

MakeNet = Callable[..., nn.Sequential]


def run(model: nn.Module, digits: Any, context: LocalContext | None = None, **fields: Any) -> FineTuneResult:
    arguments = {**digits.arguments(), "seed": 0, "teacher": None}
    arguments |= {key: fields.pop(key) for key in list(fields) if key in arguments}
    section = FineTuneSection.model_validate({"learning_rate": 0.1, "early_stopping": None, **fields})
    return fine_tune(model, section=section, context=context or LocalContext(), **arguments)


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


def test_learns_digits_and_keeps_the_best_epoch(digits: Any, make_net: MakeNet) -> None:
    rows: list[Mapping[str, Any]] = []
    model = make_net()
    result = run(model, digits, LocalContext(on_row=rows.append), epochs=4, warmup_epochs=0.5, gradient_clip=5.0)
    accuracies = [row["validation_accuracy"] for row in result.history]
    assert max(accuracies) > 0.93
    assert validation_accuracy(model, digits) == max(accuracies)
    assert result.best_epoch == accuracies.index(max(accuracies)) + 1
    assert [row["is_best"] for row in result.history] == [epoch == result.best_epoch for epoch in range(1, 5)]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    table = results.to_table([{"trial_id": "t", **row} for row in result.history], results.HISTORY)
    assert table.num_rows == 4
    assert all(set(row) == set(results.HISTORY.names) - {"trial_id"} for row in result.history)


@pytest.mark.parametrize("fields", [{"optimizer": "adamw", "learning_rate": 0.01}, {"label_smoothing": 0.1}])
def test_other_recipes_learn_too(digits: Any, make_net: MakeNet, fields: dict[str, Any]) -> None:
    model = make_net()
    run(model, digits, epochs=3, **fields)
    assert validation_accuracy(model, digits) > 0.9


@pytest.mark.parametrize(
    ("accuracies", "best"),
    [
        ([0.5, 0.6, 0.9, 0.9, 0.7], 2),  # the first of equals
        ([0.5, 0.4, 0.5, 0.5, 0.3], 0),  # nothing beats the start
        ([0.1, 0.2, 0.3, 0.4, 0.5], 4),
    ],
)
def test_ends_with_the_weights_of_the_best_epoch(
    digits: Any, make_net: MakeNet, accuracies: list[float], best: int
) -> None:
    model = make_net()
    start = copy.deepcopy(model.state_dict())
    validation, snapshots = scripted(model, accuracies)
    result = run(model, digits, epochs=4, validation_batches=validation)
    assert result.best_epoch == best
    assert_same(model.state_dict(), snapshots[best])
    assert_same(snapshots[0], start)
    assert [row["is_best"] for row in result.history] == [epoch == best for epoch in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("accuracies", "min_delta", "epochs_run"),
    [
        ([0.1, 0.5, 0.4, 0.5, 0.9, 0.9], 0.0, 3),  # 2 epochs that do not exceed 0.5
        ([0.1, 0.5, 0.4, 0.6, 0.5, 0.6], 0.0, 5),  # the third epoch resets the patience
        ([0.1, 0.5, 0.52, 0.54, 0.9, 0.9], 0.05, 3),  # better, but not by 0.05
        ([0.9, 0.2, 0.3, 0.4, 0.5, 0.6], 0.0, 5),  # still climbing back to the start
    ],
)
def test_early_stopping_waits_for_its_patience(
    digits: Any, make_net: MakeNet, accuracies: list[float], min_delta: float, epochs_run: int
) -> None:
    model = make_net()
    validation, _ = scripted(model, accuracies)
    stopping = {"patience": 2, "min_delta": min_delta}
    result = run(model, digits, epochs=5, validation_batches=validation, early_stopping=stopping)
    assert result.epochs_run == len(result.history) == epochs_run


def test_min_delta_does_not_hide_a_slightly_better_epoch(digits: Any, make_net: MakeNet) -> None:
    model = make_net()
    validation, snapshots = scripted(model, [0.1, 0.5, 0.52, 0.51])
    result = run(
        model, digits, epochs=3, validation_batches=validation, early_stopping={"patience": 2, "min_delta": 0.1}
    )
    assert result.best_epoch == 2
    assert_same(model.state_dict(), snapshots[2])


def test_no_epochs_changes_nothing(digits: Any, make_net: MakeNet) -> None:
    model = make_net()
    start = copy.deepcopy(model.state_dict())
    assert run(model, digits, epochs=0) == FineTuneResult((), 0, 0)
    assert_same(model.state_dict(), start)


class Memory:
    """Keeps every checkpoint; gives back the last."""

    def __init__(self, *contents: bytes) -> None:
        self.contents = list(contents)

    def save(self, content: bytes) -> None:
        self.contents.append(content)

    def load(self) -> bytes | None:
        return self.contents[-1] if self.contents else None


class Interrupted(Exception):
    pass


RECIPES: list[dict[str, Any]] = [
    {"optimizer": "sgd", "scheduler": "step"},
    {"optimizer": "adamw", "learning_rate": 0.01, "ema_decay": 0.9, "warmup_epochs": 1.0},
]


@pytest.mark.parametrize("fields", RECIPES)
def test_a_resumed_run_gives_the_weights_of_an_uninterrupted_one(
    digits: Any, make_net: MakeNet, fields: dict[str, Any]
) -> None:
    uninterrupted = make_net()
    expected = run(uninterrupted, digits, epochs=5, **fields)

    def dies_in_epoch_4(epoch: int) -> Iterator[Any]:
        for index, batch in enumerate(digits.train_batches(epoch)):
            if (epoch, index) == (4, 3):
                raise Interrupted
            yield batch

    memory, resumed, epochs = Memory(), make_net(), []
    context = LocalContext(checkpoints=memory)
    with pytest.raises(Interrupted):
        run(make_net(), digits, context, epochs=5, train_batches=dies_in_epoch_4, **fields)
    assert len(memory.contents) == 1  # after epoch 2

    def noted(epoch: int) -> Iterator[Any]:
        epochs.append(epoch)
        return digits.train_batches(epoch)

    torch.rand(7)
    found = run(resumed, digits, context, epochs=5, train_batches=noted, **fields)
    assert epochs == [3, 4, 5]
    assert_same(resumed.state_dict(), uninterrupted.state_dict())
    assert (found.best_epoch, found.epochs_run) == (expected.best_epoch, 5)
    timeless = [[{**row, "images_per_second": 0} for row in result.history] for result in (found, expected)]
    assert timeless[0] == timeless[1]


def test_a_finished_run_is_not_run_again(digits: Any, make_net: MakeNet) -> None:
    memory = Memory()
    first, second = make_net(), make_net()
    expected = run(first, digits, LocalContext(checkpoints=memory), epochs=1)
    found = run(second, digits, LocalContext(checkpoints=memory), epochs=1, train_batches=lambda epoch: iter(()))
    assert found == expected
    assert_same(first.state_dict(), second.state_dict())


def test_a_checkpoint_of_another_section_is_passed_over(digits: Any, make_net: MakeNet) -> None:
    memory = Memory()
    run(make_net(), digits, LocalContext(checkpoints=memory), epochs=2, learning_rate=0.05)
    fresh, other = make_net(), make_net()
    run(fresh, digits, epochs=2, learning_rate=0.1)
    run(other, digits, LocalContext(checkpoints=memory), epochs=2, learning_rate=0.1)
    assert_same(other.state_dict(), fresh.state_dict())


def test_averaged_weights_are_validated_and_kept(digits: Any, make_net: MakeNet) -> None:
    """The kept weights are those of a slow average of a run by hand: no dropout, momentum or schedule."""
    model = make_net()
    model[5] = nn.Identity()
    slow = copy.deepcopy(model).train()
    expected = {name: value.clone() for name, value in slow.state_dict().items()}
    result = run(model, digits, epochs=1, ema_decay=0.8, momentum=0.0, weight_decay=0.0, scheduler="constant")
    optimizer = torch.optim.SGD(slow.parameters(), lr=0.1)
    for images, labels in digits.train_batches(1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(slow(images), labels).backward()
        optimizer.step()
        for name, value in slow.state_dict().items():
            is_count = name.endswith("num_batches_tracked")
            expected[name] = value.clone() if is_count else 0.8 * expected[name] + 0.2 * value
    assert result.best_epoch == 1
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
    assert result.history[0]["validation_accuracy"] == validation_accuracy(model, digits)


def test_a_student_learns_from_its_teacher_without_labels(digits: Any, make_net: MakeNet) -> None:
    teacher, student = make_net(), make_net(1)
    run(teacher, digits, epochs=4)
    before = copy.deepcopy(teacher.state_dict())
    teacher.train()

    def unlabelled(epoch: int) -> Iterator[Any]:
        return ((images, torch.zeros_like(labels)) for images, labels in digits.train_batches(epoch))

    run(student, digits, epochs=4, teacher=teacher, train_batches=unlabelled, distillation={"weight": 1.0})
    assert validation_accuracy(student, digits) > 0.9
    assert_same(teacher.state_dict(), before)
    assert all(module.training for module in teacher.modules())


def test_a_diverging_run_names_the_epoch_and_the_learning_rate(digits: Any) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 10))
    with pytest.raises(TrainingError, match=r"epoch 1 is not finite at a learning rate of 1e\+20") as caught:
        run(model, digits, epochs=3, learning_rate=1e20, scheduler="constant")
    assert isinstance(caught.value, CleanAIError)


def test_too_few_batches_are_refused_and_surplus_ones_are_not_taken(digits: Any, make_net: MakeNet) -> None:
    with pytest.raises(TrainingError, match="epoch 1 has 12 training batches, steps_per_epoch is 13"):
        run(make_net(), digits, epochs=1, steps_per_epoch=13)
    taken = []

    def noted(epoch: int) -> Iterator[Any]:
        for batch in digits.train_batches(epoch):
            taken.append(epoch)
            yield batch

    run(make_net(), digits, epochs=2, steps_per_epoch=5, train_batches=noted)
    assert taken == [1] * 5 + [2] * 5


def test_modes_and_random_state_are_as_before(digits: Any, make_net: MakeNet) -> None:
    model = make_net().eval()
    model[5].train()
    flags = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    run(model, digits, epochs=1)
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), state)


def test_same_seed_same_weights_whatever_the_global_random_state(digits: Any, make_net: MakeNet) -> None:
    first, second, third = make_net(), make_net(), make_net()
    run(first, digits, epochs=1, seed=3)
    torch.manual_seed(99)
    run(second, digits, epochs=1, seed=3)
    run(third, digits, epochs=1, seed=4)
    assert_same(first.state_dict(), second.state_dict())
    assert not torch.equal(first[0].weight, third[0].weight)


def test_gradient_clipping_bounds_a_step(digits: Any) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    start = torch.cat([parameter.detach().flatten().clone() for parameter in model.parameters()])
    validation, _ = scripted(model, [0.1, 0.9])
    run(
        model,
        digits,
        epochs=1,
        steps_per_epoch=1,
        momentum=0.0,
        weight_decay=0.0,
        gradient_clip=0.01,
        validation_batches=validation,
    )
    moved = torch.cat([parameter.detach().flatten() for parameter in model.parameters()]) - start
    assert moved.norm().item() == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_a_hook_left_on_the_model_is_refused(digits: Any, make_net: MakeNet) -> None:
    model = make_net()
    model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(EvaluationError, match="on '0'"):
        run(model, digits, epochs=1)


def test_dense_training_uses_its_recipe(digits: Any, make_net: MakeNet) -> None:
    model = make_net()
    section = TrainSection.model_validate({"epochs": 10})
    result = train_dense(model, section=section, context=LocalContext(), **digits.arguments())
    rates = [row["learning_rate"] for row in result.history]
    # Warm-up for half an epoch (6 of 120 steps); the last step is 113/114 of the way along the cosine.
    assert all(first > second for first, second in pairwise(rates))
    assert rates[-1] == pytest.approx(0.05 * (1 + torch.cos(torch.tensor(torch.pi * 113 / 114)).item()), rel=1e-3)
    assert result.epochs_run == 10
    assert validation_accuracy(model, digits) == max(row["validation_accuracy"] for row in result.history) > 0.95
