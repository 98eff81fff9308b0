"""The images that a classifier gets right, kept one by one, so that models can be compared image by image later."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Hits:
    """What a model gets right among some images. The hits on two sets of images add up: `a + b`.

    Attributes:
        numbers: Indices of the images in their split, int64 [N], ascending.
        correct: True where the model is right, bool [N].
    """

    numbers: np.ndarray
    correct: np.ndarray

    def __add__(self, other: Hits) -> Hits:
        """Return the hits on both sets of images together."""
        return _ordered(np.concatenate([self.numbers, other.numbers]), np.concatenate([self.correct, other.correct]))

    def on(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the hits on given images as bool [M], false where there is none, and a mask of those that are there.

        Args:
            numbers: Indices of images, int64 [M].
        """
        places = np.searchsorted(self.numbers, numbers).clip(max=max(len(self.numbers) - 1, 0))
        if not len(self.numbers):
            return np.zeros(len(numbers), dtype=bool), np.zeros(len(numbers), dtype=bool)
        are_there = self.numbers[places] == numbers
        return self.correct[places] & are_there, are_there


class HitsKeeper:
    """Collects hits batch by batch; nothing waits for the device before `result`."""

    def __init__(self) -> None:
        self._numbers: list[np.ndarray] = []
        self._correct: list[Tensor] = []

    def add(self, numbers: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: indices of the samples int64 [N] on the CPU, logits [N, classes] and labels [N]."""
        self._numbers.append(numbers.numpy())
        self._correct.append(logits.argmax(1) == labels)

    def result(self) -> Hits:
        """Return the hits, ordered by image."""
        if not self._numbers:
            return Hits(numbers=np.zeros(0, dtype=np.int64), correct=np.zeros(0, dtype=bool))
        return _ordered(np.concatenate(self._numbers), torch.cat(self._correct).cpu().numpy())


def _ordered(numbers: np.ndarray, correct: np.ndarray) -> Hits:
    order = np.argsort(numbers, kind="stable")
    return Hits(numbers=numbers[order], correct=correct[order])
