"""The contest between variants of repair: judged by a part of their work first, and finished where they may yet win."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.errors import CleanAIError
from cleanai_ray.nn.faults import is_device_fault, is_out_of_memory
from cleanai_ray.nn.notices import notice

_STANDARD_ERRORS = 3.0
_LEAST_EXCESS = 0.1
"""A variant is beaten only if its distance is larger than the best one's by this share of it, too."""


@dataclass(kw_only=True, eq=False)
class Entry:
    """A variant in a contest.

    Attributes:
        record: What describes it; `kl` is set to the mean of its distances.
        model: The model it ends with, or, if it is unfinished, would end with if nothing more was done.
        distances: Distance to the dense model of each image held back, [N].
        finish: Does the rest of its work, and returns the model and its distances; None: it is finished.
    """

    record: dict[str, Any]
    model: nn.Module
    distances: Tensor
    finish: Callable[[], tuple[nn.Module, Tensor]] | None = None

    def __post_init__(self) -> None:
        self.record["kl"] = self.distance

    @property
    def distance(self) -> float:
        """Mean distance; never below zero."""
        return max(float(self.distances.mean()), 0.0)

    def is_beaten_by(self, best: Entry) -> bool:
        """Return whether another entry is nearer beyond chance, image by image, and by more than a little."""
        if not math.isfinite(self.distance):
            return math.isfinite(best.distance)
        excess = (self.distances - best.distances).double()
        if len(excess) < 2 or self.distance <= (1 + _LEAST_EXCESS) * best.distance:
            return False
        return float(excess.mean()) > _STANDARD_ERRORS * float(excess.std()) / math.sqrt(len(excess))


class Contest:
    """Variants of which the nearest to the dense model is looked for, without finishing those that cannot be it.

    1. Variants enter, finished or not.
    2. The nearest of those that no finished one beats is finished, again and again, until there is none.
    3. The nearest finished one wins: the first of several.

    A beaten variant's record keeps the distance at which it was beaten.
    """

    def __init__(self) -> None:
        self._best: Entry | None = None
        self._waiting: list[Entry] = []
        self._failure: Exception | None = None

    @contextmanager
    def losing(self, *records: dict[str, Any]) -> Iterator[None]:
        """Let variants lose, at an infinite distance, if they fail in the context; a notice says why.

        Raises:
            Exception: An error of the hardware, which is not the variants'.
        """
        try:
            yield
        except (CleanAIError, torch.linalg.LinAlgError) as error:
            if is_out_of_memory(error) or is_device_fault(error):
                raise
            self._failure = self._failure or error
            for record in records:
                record["kl"] = math.inf
            notice(f"repair goes on without {records[0]['compensation']}, which failed: {error}")

    def enter(self, entry: Entry) -> None:
        """Let a variant take part; what is beaten is forgotten."""
        if entry.finish is None:
            self._take(entry)
        else:
            self._waiting.append(entry)
        self._drop_beaten()

    def decide(self) -> Entry:
        """Finish what may win, and return the winner.

        Raises:
            Exception: The first error, if every variant has failed.
        """
        while self._waiting:
            entry = min(self._waiting, key=lambda each: each.distance)
            self._waiting.remove(entry)
            assert entry.finish is not None
            with self.losing(entry.record):
                entry.model, entry.distances = entry.finish()
                entry.record["kl"], entry.finish = entry.distance, None
                self._take(entry)
                self._drop_beaten()
        if self._best is None:
            assert self._failure is not None, "there is at least one variant"
            raise self._failure
        return self._best

    def _take(self, entry: Entry) -> None:
        if self._best is None or entry.distance < self._best.distance:
            self._best = entry

    def _drop_beaten(self) -> None:
        best = self._best
        if best is not None:
            self._waiting = [entry for entry in self._waiting if not entry.is_beaten_by(best)]
