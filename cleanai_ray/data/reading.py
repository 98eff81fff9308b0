"""Reading of samples, in this process or in a worker of a DataLoader."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from cleanai_ray.data.augment import sample_seeds
from cleanai_ray.data.decoded import DecodedImages, Layout
from cleanai_ray.data.decoded_folder import opened_here
from cleanai_ray.data.pixels import delivers_pixels
from cleanai_ray.data.source import ImageDataset
from cleanai_ray.errors import DataError, SampleError

T = TypeVar("T")

DECODE_LOG = "CLEANAI_DECODE_LOG"
"""An environment variable: the file to which every process adds a line for each image that it decodes."""

_POLL_SECONDS = 0.005
_PATIENCE = 60.0
"""Seconds that a process waits for another one to decode an image before it decodes the image itself."""


@dataclass(frozen=True, kw_only=True)
class Slots:
    """The slots of a file of decoded images that samples go to.

    Attributes:
        layout: The file.
        inode: Its number.
        stamps: The version of each sample, uint64 [n].
    """

    layout: Layout
    inode: int
    stamps: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Task:
    """Samples of one batch that are read together.

    Attributes:
        indices: The indices of the whole batch, int64 [N].
        places: The places in the batch to read [n].
        dataset: The number that the reader knows the data set by.
        seed: Together with a sample's index, it determines the random transforms of the sample.
        limit: Unreadable samples that there may be; reading stops at one more.
        fill: Replace an unreadable sample by the next readable one of the batch.
        slots: Where to put decoded images, instead of returning them.
    """

    indices: np.ndarray
    places: Sequence[int]
    dataset: int = 0
    seed: int = 0
    limit: int = 0
    fill: bool = False
    slots: Slots | None = None


@dataclass(kw_only=True)
class Read:
    """The outcome of a task. Errors are returned and not raised, so that they leave a worker process unchanged.

    Attributes:
        places: Places whose items are returned; of the others, some are in the file, and some are unreadable.
        indices: The indices of the samples that the items are.
        items: Their items, collated; of a data set that delivers pixels, images uint8 [n, C, H, W] and classes [n].
        found: Place, location and reason of each unreadable sample.
        fault: The error that ended the reading.
    """

    places: list[int] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    items: Any = None
    found: list[tuple[int, str, str]] = field(default_factory=list)
    fault: DataError | None = None


def unchanged(value: T) -> T:
    """Return the value: the collate function of items that are complete already."""
    return value


class SampleReader(Dataset[Read]):
    """Carries out tasks, as a map-style data set whose indices are tasks.

    Args:
        datasets: The data sets that tasks refer to by number.
    """

    def __init__(self, datasets: Sequence[ImageDataset]) -> None:
        self.datasets = list(datasets)

    @property
    def multiprocessing_context(self) -> str | None:
        """Start method that worker processes need; None: the usual one."""
        return next(filter(None, (getattr(each, "multiprocessing_context", None) for each in self.datasets)), None)

    @property
    def modules(self) -> list[str]:
        """Modules that a worker process imports to read samples."""
        return [__name__, *{type(each).__module__ for each in self.datasets}]

    def __getitem__(self, task: Task) -> Read:
        reading = _Reading(self.datasets[task.dataset], task)
        try:
            with torch.random.fork_rng(devices=[]):
                reading.run()
        except _TooManyError:
            return Read(found=reading.found)
        except DataError as error:
            return Read(found=reading.found, fault=DataError(str(error)))
        items = default_collate(reading.items) if reading.items else None
        return Read(places=reading.places, indices=reading.indices, items=items, found=reading.found)


class _TooManyError(Exception):
    """More samples of a task are unreadable than are allowed in all."""


class _Reading:
    """The state of a task that is carried out; unreadable samples are tried once."""

    def __init__(self, dataset: ImageDataset, task: Task) -> None:
        self.places: list[int] = []
        self.indices: list[int] = []
        self.items: list[Any] = []
        self.found: list[tuple[int, str, str]] = []
        self._dataset = dataset
        self._task = task
        self._seeds = sample_seeds(task.seed, task.indices)
        self._unreadable: set[int] = set()

    def run(self) -> None:
        """Read all places; with `fill`, the first readable sample from a place on, continuing at the start."""
        width = len(self._task.indices) if self._task.fill else 1
        for place in self._task.places if self._task.slots is None else self._not_kept(self._task.slots):
            for candidate in range(place, place + width):
                read = candidate % len(self._task.indices)
                item = self._try(read)
                if item is not None:
                    self.places.append(place)
                    self.indices.append(int(self._task.indices[read]))
                    self.items.append(item)
                    break

    def _not_kept(self, slots: Slots) -> list[int]:
        """Put images into their slots; return the places of those for which that was not possible."""
        images = _attached(slots.layout, slots.inode)
        left = dict(zip(self._task.places, map(int, slots.stamps), strict=True))
        deadline = time.monotonic() + _PATIENCE
        while images is not None and left and time.monotonic() < deadline:
            for place, stamp in list(left.items()):
                try:
                    if not images.fill(int(self._task.indices[place]), stamp, partial(self._decode, place)):
                        continue
                except SampleError as error:
                    self._note(place, error)
                except OSError:  # the disk is full
                    return list(left)
                del left[place]
            if left:
                time.sleep(_POLL_SECONDS)
        return list(left)

    def _try(self, place: int) -> Any:
        if place in self._unreadable:
            return None
        try:
            return self._decode(place)
        except SampleError as error:
            self._note(place, error)
        return None

    def _decode(self, place: int) -> tuple[Tensor, int]:
        index = int(self._task.indices[place])
        torch.default_generator.manual_seed(int(self._seeds[place]))
        log_decode(self._dataset, index)
        return self._dataset.pixels(index) if delivers_pixels(self._dataset) else self._dataset[index]

    def _note(self, place: int, error: SampleError) -> None:
        self._unreadable.add(place)
        self.found.append((place, error.where or f"{self._task.indices[place]}", error.reason))
        if len(self.found) > self._task.limit:
            raise _TooManyError


@lru_cache(maxsize=4)
def _opened(layout: Layout, inode: int, process: int) -> DecodedImages | None:
    try:
        return DecodedImages(layout, inode)
    except OSError:
        return None


def _attached(layout: Layout, inode: int) -> DecodedImages | None:
    """Return this process's opening of a file; None if it is gone. A second one would free the locks of the first."""
    return opened_here(layout) or _opened(layout, inode, os.getpid())


def log_decode(dataset: Any, index: int) -> None:
    """Add a line for the decoding of a sample to the file that `DECODE_LOG` names, if any."""
    path = os.environ.get(DECODE_LOG)
    if path:
        where = dataset.where(index) if hasattr(dataset, "where") else index
        with open(path, "a", encoding="utf-8", errors="surrogateescape") as log:
            log.write(f"{where}\n")
