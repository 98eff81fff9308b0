from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import pytest
import torch
from fine_tuning_cases import MakeNet, assert_same, run, scripted, validation_accuracy
from torch import nn
from torch.nn import functional

from cleanai_ray.config.finetune import FineTuneSection
from cleanai_ray.config.sections import TrainSection
from cleanai_ray.errors import CleanAIError, EvaluationError
from cleanai_ray.storage import schemas
from cleanai_ray.training.context import LocalContext, TrainingError
from cleanai_ray.training.data import TrainingData
from cleanai_ray.training.fine_tune import FineTuneResult, fine_tune
from cleanai_ray.training.train import dense_recipe, train_dense


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
    table = schemas.to_table([{"trial_id": "t", **row} for row in result.history], schemas.HISTORY)
    assert table.num_rows == 4
    assert all(set(row) == set(schemas.HISTORY.names) - {"trial_id", "step"} for row in result.history)


@pytest.mark.parametrize("fields", [{"optimizer": "adamw", "learning_rate": 0.01}, {"label_smoothing": 0.1}])
def test_other_recipes_learn_too(digits: Any, make_net: MakeNet, fields: dict[str, Any]) -> None:
    model = make_net()
    run(model, digits, epochs=3, **fields)
    assert validation_accuracy(model, digits) > 0.9


def test_no_epochs_changes_nothing(digits: Any, make_net: MakeNet) -> None:
    model = make_net()
    start = copy.deepcopy(model.state_dict())
    assert run(model, digits, epochs=0) == FineTuneResult((), 0, 0)
    assert_same(model.state_dict(), start)


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


def test_a_long_epoch_that_diverges_is_not_run_to_its_end() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
    taken = []

    def batches(epoch: int) -> Iterator[Any]:
        while True:
            taken.append(epoch)
            yield torch.randn(2, 4), torch.tensor([0, 1])

    section = FineTuneSection.model_validate({"epochs": 1, "learning_rate": 1e20, "scheduler": "constant"})
    with pytest.raises(TrainingError, match="epoch 1 is not finite"):
        fine_tune(
            model,
            section=section,
            data=TrainingData(
                train_batches=batches,
                steps_per_epoch=10_000,
                validation_batches=lambda: [(torch.randn(2, 4), torch.tensor([0, 1]))],
            ),
            context=LocalContext(),
            seed=0,
        )
    assert len(taken) < 1000


def test_too_few_batches_are_refused_and_surplus_ones_are_not_taken(digits: Any, make_net: MakeNet) -> None:
    with pytest.raises(TrainingError, match=r"epoch 1 .*12 .*steps_per_epoch.* 13"):
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


def test_a_model_found_in_evaluation_mode_trains_in_training_mode(digits: Any, make_net: MakeNet) -> None:
    model = make_net().eval()
    validation, _ = scripted(model, [0.1, 0.9])
    run(model, digits, epochs=1, validation_batches=validation)
    assert model[1].num_batches_tracked == digits.steps_per_epoch


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


def test_dense_training_can_use_adamw() -> None:
    section = TrainSection.model_validate({"epochs": 40, "optimizer": "adamw", "learning_rate": 0.002})
    recipe = dense_recipe(section)
    assert (recipe.optimizer, recipe.learning_rate, recipe.epochs) == ("adamw", 0.002, 40)
    assert recipe.warmup_epochs == 1.0  # 5 % of 40 epochs are 2


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16"])
def test_dense_training_computes_in_the_precision_that_it_is_given(
    digits: Any, make_net: MakeNet, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    seen = set()
    linear = functional.linear

    def recorded(*arguments: torch.Tensor) -> torch.Tensor:
        result = linear(*arguments)
        if result.requires_grad:
            seen.add(result.dtype)
        return result

    monkeypatch.setattr(functional, "linear", recorded)
    model, section = make_net(), TrainSection.model_validate({"epochs": 1, "precision": precision})
    train_dense(model, section=section, data=TrainingData(**digits.arguments()), context=LocalContext())
    assert seen == {torch.bfloat16 if precision == "bfloat16" else torch.float32}
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_dense_training_uses_its_recipe(digits: Any, make_net: MakeNet) -> None:
    model = make_net()
    section = TrainSection.model_validate({"epochs": 10})
    result = train_dense(model, section=section, data=TrainingData(**digits.arguments()), context=LocalContext())
    rates = [row["learning_rate"] for row in result.history]
    # Warm-up for half an epoch (6 of 120 steps); the last step is 113/114 of the way along the cosine.
    assert all(first > second for first, second in pairwise(rates))
    assert rates[-1] == pytest.approx(0.05 * (1 + torch.cos(torch.tensor(torch.pi * 113 / 114)).item()), rel=1e-3)
    assert result.epochs_run == 10
    assert validation_accuracy(model, digits) == max(row["validation_accuracy"] for row in result.history) > 0.95
