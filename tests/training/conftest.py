from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]


class Digits(NamedTuple):
    """The arguments of `fine_tune` that stand for 1,200 training and 597 validation digits."""

    train_batches: Callable[[int], Iterator[Pair]]
    steps_per_epoch: int
    validation_batches: Callable[[], list[Pair]]

    def arguments(self) -> dict[str, Any]:
        return self._asdict()


@pytest.fixture(scope="session")
def digits() -> Digits:
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16.0
    labels = torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, validation = order[:1200], order[1200:]
    batch = 100

    def train_batches(epoch: int) -> Iterator[Pair]:
        shuffled = train[torch.randperm(len(train), generator=torch.Generator().manual_seed(epoch))]
        for indices in shuffled.split(batch):
            yield images[indices], labels[indices]

    def validation_batches() -> list[Pair]:
        return [(images[indices], labels[indices]) for indices in validation.split(200)]

    return Digits(train_batches, len(train) // batch, validation_batches)


def small_net(seed: int = 0) -> nn.Sequential:
    """A network with everything that training state lives in: batch-norm buffers, dropout, biases."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(128, 10),
    )


@pytest.fixture
def make_net() -> Callable[[int], nn.Sequential]:
    return small_net
