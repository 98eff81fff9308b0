"""Checkpoints within an epoch: a run that resumes from any of them ends with the very same weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fine_tuning_cases import MakeNet, assert_same, run

from cleanai_ray.training.context import LocalContext, decode_checkpoint

EVERY_STEP = 1e-9
"""Minutes that have always passed."""


class Memory:
    """Keeps every checkpoint; gives back the last."""

    def __init__(self) -> None:
        self.contents: list[bytes] = []

    def save(self, content: bytes, part: str = "") -> None:
        self.contents.append(content)

    def load(self, part: str = "") -> bytes | None:
        return self.contents[-1] if self.contents else None

    @property
    def places(self) -> list[tuple[int, int]]:
        """The finished epochs of each checkpoint, and the steps after them."""
        states = [decode_checkpoint(content) for content in self.contents]
        return [(len(state["progress"]["history"]), (state["position"] or {"done": 0})["done"]) for state in states]


class Interrupted(Exception):
    pass


RECIPES: list[dict[str, Any]] = [
    {"optimizer": "sgd", "scheduler": "step", "gradient_clip": 1.0},
    {"optimizer": "adamw", "learning_rate": 0.01, "ema_decay": 0.9, "warmup_epochs": 1.0},
]


@pytest.mark.parametrize("fields", RECIPES)
@pytest.mark.parametrize("place", [(1, 1), (1, 7), (2, 11)])
def test_a_run_interrupted_within_an_epoch_gives_the_weights_of_an_uninterrupted_one(
    digits: Any, make_net: MakeNet, fields: dict[str, Any], place: tuple[int, int]
) -> None:
    """The network has dropout, so the random state counts."""
    uninterrupted = make_net()
    expected = run(uninterrupted, digits, epochs=3, **fields)

    def dies(epoch: int) -> Iterator[Any]:
        for index, batch in enumerate(digits.train_batches(epoch)):
            if (epoch, index) == place:
                raise Interrupted
            yield batch

    memory, resumed, taken = Memory(), make_net(), []
    context = LocalContext(checkpoints=memory)
    fields = {**fields, "checkpoint_minutes": EVERY_STEP}
    with pytest.raises(Interrupted):
        run(make_net(), digits, context, epochs=3, train_batches=dies, **fields)
    assert memory.places[-1] == (place[0] - 1, place[1])

    def noted(epoch: int) -> Iterator[Any]:
        for index, batch in enumerate(digits.train_batches(epoch)):
            taken.append((epoch, index))
            yield batch

    torch.rand(7)
    found = run(resumed, digits, context, epochs=3, train_batches=noted, **fields)
    assert_same(resumed.state_dict(), uninterrupted.state_dict())
    timeless = [[{**row, "images_per_second": 0} for row in result.history] for result in (found, expected)]
    assert timeless[0] == timeless[1]
    # The steps of the epochs before do not run again; the batches that are passed over are made.
    assert taken[0] == (place[0], 0)


def test_a_resumed_epoch_asks_for_its_later_batches_where_it_can(digits: Any, make_net: MakeNet) -> None:
    def dies(epoch: int) -> Iterator[Any]:
        for index, batch in enumerate(digits.train_batches(epoch)):
            if index == 5:
                raise Interrupted
            yield batch

    def later(epoch: int, done: int) -> Iterator[Any]:
        asked.append((epoch, done))
        return iter(list(digits.train_batches(epoch))[done:])

    memory, asked = Memory(), []
    context, fields = LocalContext(checkpoints=memory), {"epochs": 1, "checkpoint_minutes": EVERY_STEP}
    with pytest.raises(Interrupted):
        run(make_net(), digits, context, train_batches=dies, **fields)
    resumed, uninterrupted = make_net(), make_net()
    run(resumed, digits, context, later_batches=later, train_batches=lambda epoch: iter(()), **fields)
    run(uninterrupted, digits, epochs=1)
    assert asked == [(1, 5)]
    assert_same(resumed.state_dict(), uninterrupted.state_dict())


def test_checkpoints_within_an_epoch_are_as_far_apart_as_asked(
    digits: Any, make_net: MakeNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step takes a minute here, and an epoch has 12 of them; that of a finished epoch counts as well."""
    minutes = [0.0]

    def ticking(epoch: int) -> Iterator[Any]:
        for batch in digits.train_batches(epoch):
            minutes[0] += 1.0
            yield batch

    monkeypatch.setattr("cleanai_ray.training.position.time.monotonic", lambda: 60 * minutes[0])
    memory = Memory()
    fields = {"epochs": 2, "checkpoint_minutes": 5, "save_every_n_epochs": 2}
    run(make_net(), digits, LocalContext(checkpoints=memory), train_batches=ticking, **fields)
    assert memory.places == [(0, 5), (0, 10), (1, 3), (1, 8), (2, 0)]
    memory.contents.clear()
    fields = {"epochs": 1, "checkpoint_minutes": None}
    run(make_net(), digits, LocalContext(checkpoints=memory), train_batches=ticking, **fields)
    assert memory.places == [(1, 0)]
