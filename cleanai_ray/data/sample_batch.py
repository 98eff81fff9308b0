"""A batch on its way: the tasks that read its samples, and what came of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import torch

from cleanai_ray.data.kept_images import KeptImages
from cleanai_ray.data.reading import Read, Slots, Task
from cleanai_ray.data.to_device import NumberedBatch
from cleanai_ray.data.unreadable import UnreadableSamples
from cleanai_ray.errors import SampleError

Carrier = Callable[[Task], Read]
"""Carries out a task in this process."""


class SampleBatch:
    """One process's share of a batch.

    Args:
        task: All that this process reads of the batch.
        num_tasks: The number of tasks to cut it into, so that workers share the batch.
    """

    def __init__(self, task: Task, num_tasks: int) -> None:
        self._task = task
        self._reads: list[Read] = []
        self.tasks = self._cut(num_tasks)

    @property
    def is_complete(self) -> bool:
        """True once every task has its outcome."""
        return len(self._reads) >= len(self.tasks)

    def numbered(self, dataset: int) -> Iterable[Task]:
        """Return the tasks for a reader that knows the data set by another number."""
        return (replace(task, dataset=dataset) for task in self.tasks)

    def add(self, read: Read) -> None:
        """Add the outcome of the next task."""
        self._reads.append(read)

    def assemble(self, unreadable: UnreadableSamples, carry_out: Carrier) -> NumberedBatch | None:
        """Return the indices of the batch's samples, their images and classes. None if no sample is left.

        Args:
            unreadable: Receives the samples that could not be read.
            carry_out: Carries out a task, for samples that were in a file and have just changed.

        Raises:
            DataError: When there are too many unreadable ones, or reading ended in an error.
        """
        items = self._collate(carry_out)
        found = {entry[0]: entry for read in self._reads for entry in read.found}
        for _, where, reason in sorted(found.values()):
            unreadable.add(where, reason)
        for read in self._reads:
            if read.fault is not None:
                raise read.fault
        return items

    def _cut(self, num_tasks: int) -> list[Task]:
        return [replace(self._task, places=part.tolist()) for part in _parts(np.asarray(self._task.places), num_tasks)]

    def _collate(self, carry_out: Carrier) -> NumberedBatch | None:
        parts = [(torch.tensor(read.indices), *read.items) for read in self._reads if read.items is not None]
        if len(parts) < 2:
            return parts[0] if parts else None
        numbers, images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return numbers, images, labels


class KeptBatch(SampleBatch):
    """One process's share of a batch whose decoded images are kept in a file: only those that it lacks are read.

    Args:
        task: All that this process reads of the batch.
        num_tasks: The number of tasks to cut it into.
        kept: Where decoded images are kept.
    """

    def __init__(self, task: Task, num_tasks: int, kept: KeptImages) -> None:
        self._kept = kept
        self._places = np.asarray(task.places, np.int64)
        self._indices = task.indices[self._places]
        stamps = kept.dataset.stamps(self._indices)
        assert stamps is not None
        self._stamps = stamps
        super().__init__(task, num_tasks)

    def _cut(self, num_tasks: int) -> list[Task]:
        images = self._kept.images
        missing = self._missing()
        room = self._kept.room(len(missing)) if len(missing) else 0
        if room:
            room -= self._kept.fill(self._indices[missing[:room]], self._stamps[missing[:room]])
            missing = self._missing()
        tasks = []
        for part in _parts(missing[:room], num_tasks):
            slots = Slots(layout=images.layout, inode=images.inode, stamps=self._stamps[part])
            tasks.append(replace(self._task, places=self._places[part].tolist(), slots=slots))
        rest = [replace(self._task, places=self._places[part].tolist()) for part in _parts(missing[room:], num_tasks)]
        return tasks + rest

    def _missing(self) -> np.ndarray:
        """Return the positions of the samples that the file lacks."""
        return np.flatnonzero(~self._kept.images.are_known(self._indices, self._stamps))

    def _collate(self, carry_out: Carrier) -> NumberedBatch | None:
        shape, count = self._kept.images.layout.shape, len(self._indices)
        images, labels = torch.empty((count, *shape), dtype=torch.uint8), torch.empty(count, dtype=torch.int64)
        done = np.zeros(count, bool)
        for read in self._reads:
            self._take(read, images, labels, done)
        self._take_kept(images, labels, done)
        lost = ~done
        lost[[self._position(place) for read in self._reads for place, _, _ in read.found]] = False
        has_ended = any(read.fault is not None or len(read.found) > self._task.limit for read in self._reads)
        if lost.any() and not has_ended:  # the file was deleted, or an image changed while it was read
            self.add(carry_out(replace(self._task, places=self._places[lost].tolist())))
            self._take(self._reads[-1], images, labels, done)
        numbers = torch.from_numpy(self._indices)
        if done.all():
            return numbers, images, labels
        return (numbers[done], images[done], labels[done]) if done.any() else None

    def _position(self, place: int) -> int:
        return int(np.searchsorted(self._places, place))

    def _take(self, read: Read, images: torch.Tensor, labels: torch.Tensor, done: np.ndarray) -> None:
        """Take over the images of a task that were not put into the file."""
        for number, place in enumerate(read.places):
            position = self._position(place)
            images[position], labels[position] = read.items[0][number], read.items[1][number]
            done[position] = True

    def _take_kept(self, images: torch.Tensor, labels: torch.Tensor, done: np.ndarray) -> None:
        """Take over images and faults from the file."""
        kept, faults, target = self._kept.images, Read(), images.numpy()
        positions = np.flatnonzero(kept.are_known(self._indices, self._stamps) & ~done)
        for position in positions.tolist():
            try:
                target[position], labels[position] = kept.read(int(self._indices[position]))
                done[position] = True
            except SampleError as error:
                where = error.where or f"{self._indices[position]}"
                faults.found.append((int(self._places[position]), where, error.reason))
        # An image that was replaced meanwhile may be half of each.
        done[positions] &= kept.are_known(self._indices[positions], self._stamps[positions])
        self._reads.append(faults)


def _parts(values: np.ndarray, number: int) -> Iterable[np.ndarray]:
    return np.array_split(values, min(number, len(values))) if len(values) else ()
