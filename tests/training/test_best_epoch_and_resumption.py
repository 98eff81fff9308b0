from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from fine_tuning_cases import MakeNet, assert_same, run, scripted

from cleanai_ray.training.context import LocalContext, decode_checkpoint, encode_checkpoint
from cleanai_ray.training.part import TrainingPart


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


def test_a_start_that_does_not_compete_is_neither_validated_nor_kept(digits: Any, make_net: MakeNet) -> None:
    model = make_net()
    validation, snapshots = scripted(model, [0.3, 0.5, 0.4])
    result = run(model, digits, epochs=3, validation_batches=validation, start_competes=False)
    assert [row["validation_accuracy"] for row in result.history] == [0.3, 0.5, 0.4]
    assert result.best_epoch == 2
    assert_same(model.state_dict(), snapshots[1])


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


class Memory:
    """Keeps every checkpoint; gives back the last."""

    def __init__(self, *contents: bytes) -> None:
        self.contents = list(contents)

    def save(self, content: bytes, part: str = "") -> None:
        self.contents.append(content)

    def load(self, part: str = "") -> bytes | None:
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


def test_a_checkpoint_of_another_part_is_passed_over(digits: Any, make_net: MakeNet) -> None:
    memory = Memory()
    first, second = (TrainingPart(name=name, epochs_before=before) for name, before in (("one", 0), ("two", 2)))
    run(make_net(), digits, LocalContext(checkpoints=memory), epochs=2, part=first)
    fresh, other = make_net(), make_net()
    expected = run(fresh, digits, epochs=2, part=second)
    found = run(other, digits, LocalContext(checkpoints=memory), epochs=2, part=second)
    assert_same(other.state_dict(), fresh.state_dict())
    assert [row["epoch"] for row in found.history] == [row["epoch"] for row in expected.history] == [3, 4]


def test_epochs_of_a_later_part_count_on(digits: Any, make_net: MakeNet) -> None:
    """Its numbers, batches and best epoch do; the learning rate has a schedule of its own."""
    model, taken = make_net(), []
    validation, snapshots = scripted(model, [0.1, 0.5, 0.4])

    def noted(epoch: int) -> Iterator[Any]:
        taken.append(epoch)
        return digits.train_batches(epoch)

    part = TrainingPart(name="two", step=2, epochs_before=3)
    result = run(model, digits, epochs=2, validation_batches=validation, train_batches=noted, part=part)
    assert taken == [row["epoch"] for row in result.history] == [4, 5]
    assert (result.best_epoch, result.epochs_run) == (4, 2)
    assert [row["is_best"] for row in result.history] == [True, False]
    assert_same(model.state_dict(), snapshots[1])
    alone = run(make_net(), digits, epochs=2)
    assert [row["learning_rate"] for row in result.history] == [row["learning_rate"] for row in alone.history]


def unseen(model: Any, accuracies: list[float]) -> Callable[[], list[Any]]:
    return scripted(model, accuracies)[0]


@pytest.mark.parametrize(
    ("of_start", "of_best", "kept"),
    [
        (0.5, 0.6, 2),
        (0.5, 0.5, 0),  # the start of equals
        (0.9, 0.6, 0),
    ],
)
def test_a_start_that_has_seen_the_validation_samples_is_judged_by_others(
    digits: Any, make_net: MakeNet, of_start: float, of_best: float, kept: int
) -> None:
    """Validation alone chooses the epoch; other samples choose between it and the start."""
    model = make_net()
    validation, snapshots = scripted(model, [0.3, 0.5, 0.4])
    fields = {"validation_batches": validation, "unseen_batches": unseen(model, [of_start, of_best])}
    start = copy.deepcopy(model.state_dict())
    result = run(model, digits, epochs=3, start_competes=False, **fields)
    assert (result.best_epoch, result.epochs_run) == (kept, 3)
    assert_same(model.state_dict(), snapshots[1] if kept else start)
    assert [row["is_best"] for row in result.history] == [epoch == kept for epoch in (1, 2, 3)]


@pytest.mark.parametrize("competes", [True, False])
def test_a_learning_rate_that_only_harms_leaves_the_weights_bit_for_bit(
    digits: Any, make_net: MakeNet, competes: bool
) -> None:
    model = make_net()
    run(model, digits, epochs=3)
    good, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    fields = {"start_competes": competes, "unseen_batches": digits.validation_batches}
    result = run(model, digits, epochs=2, learning_rate=50.0, **fields)
    assert (result.best_epoch, result.epochs_run) == (0, 2)
    assert not any(row["is_best"] for row in result.history)
    assert_same(model.state_dict(), good)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("competes", [True, False])
def test_a_resumed_training_does_not_score_the_start_again(digits: Any, make_net: MakeNet, competes: bool) -> None:
    """It is interrupted within the third epoch; all epochs are worse than the start."""

    def dies(epoch: int) -> Iterator[Any]:
        yield next(digits.train_batches(epoch))
        raise Interrupted

    def dies_in_epoch_3(epoch: int) -> Iterator[Any]:
        return digits.train_batches(epoch) if epoch < 3 else dies(epoch)

    memory, first = Memory(), make_net()
    start = copy.deepcopy(first.state_dict())
    # Validation: the start where it competes, and the epochs. Other samples: the start, and in the end the best epoch.
    validation, _ = scripted(first, [0.9] * competes + [0.3, 0.2])
    fields: dict[str, Any] = {"epochs": 3, "start_competes": competes}
    with pytest.raises(Interrupted):
        run(
            first,
            digits,
            LocalContext(checkpoints=memory),
            train_batches=dies_in_epoch_3,
            validation_batches=validation,
            unseen_batches=unseen(first, [0.9]),
            **fields,
        )
    resumed = make_net(1)
    validation, seen = scripted(resumed, [0.1])
    others, judged = scripted(resumed, [0.8])
    result = run(
        resumed,
        digits,
        LocalContext(checkpoints=memory),
        validation_batches=validation,
        unseen_batches=others,
        **fields,
    )
    assert (len(seen), len(judged)) == (1, 0 if competes else 1)
    assert (result.best_epoch, result.epochs_run) == (0, 3)
    assert_same(resumed.state_dict(), start)


def test_a_checkpoint_of_a_version_that_did_not_judge_the_start_is_read(digits: Any, make_net: MakeNet) -> None:
    memory = Memory()
    validation, _ = scripted(model := make_net(), [0.3, 0.5])
    run(model, digits, LocalContext(checkpoints=memory), epochs=2, start_competes=False, validation_batches=validation)
    state = decode_checkpoint(memory.contents[-1])
    for name in ("start_merit", "start_weights"):
        del state["progress"][name]
    older = Memory(encode_checkpoint(state))
    found = make_net()
    result = run(
        found,
        digits,
        LocalContext(checkpoints=older),
        epochs=2,
        start_competes=False,
        train_batches=lambda epoch: iter(()),
        unseen_batches=list,
    )
    assert result.best_epoch == 2
    assert_same(found.state_dict(), model.state_dict())
