"""Reading a batch sample by sample, in this process or in a worker of a DataLoader."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from cleanai_ray.data.augment import sample_seeds
from cleanai_ray.data.source import ImageDataset
from cleanai_ray.errors import DataError, SampleError

T = TypeVar("T")

Batch = list[Tensor]
"""Images float32 [N, C, H, W], labels int64 [N], and the samples' indices int64 [N]."""

Read = tuple[Batch | None, dict[str, str], DataError | None]
"""A batch (None where no sample of it is left), its unreadable samples, and the error that ended the reading."""


def unchanged(value: T) -> T:
    """Return the value: the collate function of batches that are complete already."""
    return value


class BatchReader(Dataset[Read]):
    """Shares of batches, as a map-style data set whose items are whole batches.

    Errors of a sample are returned and not raised, so that they come out of a worker process unchanged.

    Args:
        dataset: A data set of single samples.
        order: Indices of the samples, int64 [N].
        batch_size: Images a batch, over all processes.
        share: Rank and world size.
        seed: Together with a sample's index, it determines the random transforms of the sample.
        limit: Unreadable samples that a batch may have; reading stops at one more.
        fill: Replace an unreadable sample by the next readable one of the batch.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        order: np.ndarray,
        batch_size: int,
        share: tuple[int, int],
        *,
        seed: int,
        limit: int,
        fill: bool,
    ) -> None:
        self._dataset = dataset
        self._order = order
        self._batch_size = batch_size
        self._rank, self._world_size = share
        self._seed = seed
        self._limit = limit
        self._fill = fill

    @property
    def multiprocessing_context(self) -> str | None:
        """Start method that worker processes need; None: the usual one."""
        return getattr(self._dataset, "multiprocessing_context", None)

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules that a worker process imports to read batches."""
        return __name__, type(self._dataset).__module__

    def __len__(self) -> int:
        return -(-len(self._order) // self._batch_size)

    def __getitem__(self, number: int) -> Read:
        whole = self._order[number * self._batch_size : (number + 1) * self._batch_size]
        attempts = _Attempts(self._dataset, whole, sample_seeds(self._seed, whole), self._limit)
        width = len(whole) if self._fill else 1
        try:
            with torch.random.fork_rng(devices=[]):
                places = range(self._rank, len(whole), self._world_size)
                items = [item for place in places if (item := attempts.first(place, width)) is not None]
        except _TooManyError:
            return None, attempts.found, None
        except DataError as error:
            return None, attempts.found, DataError(str(error))
        return default_collate(items) if items else None, attempts.found, None


class _TooManyError(Exception):
    """More samples of a batch are unreadable than are allowed in all."""


class _Attempts:
    """Reads samples of one batch; unreadable ones are tried once."""

    def __init__(self, dataset: ImageDataset, indices: np.ndarray, seeds: np.ndarray, limit: int) -> None:
        self.found: dict[str, str] = {}
        self._dataset = dataset
        self._indices = indices
        self._seeds = seeds
        self._limit = limit
        self._unreadable: set[int] = set()

    def first(self, place: int, width: int) -> tuple[Tensor, int, int] | None:
        """Return the first readable sample of `width` places from `place` on, continuing at the start of the batch.

        It is an image, its label, and the sample's index.
        """
        for candidate in range(place, place + width):
            item = self._read(candidate % len(self._indices))
            if item is not None:
                return item
        return None

    def _read(self, place: int) -> tuple[Tensor, int, int] | None:
        if place in self._unreadable:
            return None
        torch.default_generator.manual_seed(int(self._seeds[place]))
        index = int(self._indices[place])
        try:
            return *self._dataset[index], index
        except SampleError as error:
            self._unreadable.add(place)
            self.found[error.where or f"{self._indices[place]}"] = error.reason
        if len(self.found) > self._limit:
            raise _TooManyError
        return None
