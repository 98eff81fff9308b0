"""Worker processes that read samples: one set of them for as long as this process lives."""

from __future__ import annotations

import atexit
import contextlib
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import multiprocessing
from torch.utils.data import DataLoader, Sampler

from cleanai_ray.data.reading import Read, SampleReader, Task, unchanged
from cleanai_ray.data.sample_batch import SampleBatch
from cleanai_ray.data.source import ImageDataset

_MAX_DATASETS = 8
"""Data sets that workers know at once: more than the splits of a study, with augmentation and without."""


class _Tasks(Sampler[Task]):
    """The tasks of the present iteration, as a sampler whose iterator can be set."""

    def __init__(self) -> None:
        self.tasks: Iterable[Task] = ()

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)


class _Workers:
    """A DataLoader whose workers stay: they are started anew only for a data set that they do not know.

    Args:
        num_workers: Their number.
        datasets: The data sets that they know.
    """

    def __init__(self, num_workers: int, datasets: list[ImageDataset]) -> None:
        self.datasets = datasets
        self.is_busy = False
        self._sampler = _Tasks()
        reader = SampleReader(datasets)
        self._loader: DataLoader[Read] = DataLoader(
            reader,
            batch_size=None,
            sampler=self._sampler,
            collate_fn=unchanged,
            num_workers=num_workers,
            persistent_workers=True,
            generator=torch.Generator().manual_seed(0),
            multiprocessing_context=_context(reader),
        )

    def run(self, tasks: Iterable[Task]) -> Iterator[Read]:
        """Return the outcomes of tasks, in order."""
        self._sampler.tasks = tasks
        return iter(self._loader)

    def end(self) -> None:
        """End the processes now: an error whose traceback refers to them would keep torch watching the dead ones."""
        if self._iterator is not None:
            with contextlib.suppress(RuntimeError):  # torch says of each of them that it died, wherever it is told
                self._iterator._shutdown_workers()

    @property
    def is_alive(self) -> bool:
        """True unless a process has died."""
        return self._iterator is None or all(worker.is_alive() for worker in self._iterator._workers)

    @property
    def _iterator(self) -> Any:
        return getattr(self._loader, "_iterator", None)


_workers: dict[tuple[int, int], _Workers] = {}
"""The workers of a process, by its number and theirs."""

atexit.register(_workers.clear)


def read_batches(
    dataset: ImageDataset, batches: Iterator[SampleBatch], num_workers: int
) -> Generator[tuple[SampleBatch, SampleReader]]:
    """Yield batches once their tasks are carried out, and a reader for what is left to do.

    Args:
        dataset: The data set that the tasks refer to; its number in them is 0.
        batches: They are drawn as workers have time for them, some ahead of those that are yielded.
        num_workers: Processes that read; none, and this one reads.
    """
    here = SampleReader([dataset])
    if num_workers:
        for batch in batches:
            if batch.tasks:
                batches = _by_workers(dataset, chain([batch], batches), num_workers)
                break
            yield batch, here
    for batch in batches:
        for task in batch.tasks if not batch.is_complete else ():
            batch.add(here[task])
        yield batch, here


def _by_workers(dataset: ImageDataset, batches: Iterator[SampleBatch], num_workers: int) -> Iterator[SampleBatch]:
    """Yield batches whose tasks workers have carried out."""
    workers, drawn = _acquire(dataset, num_workers), deque[SampleBatch]()
    number = next(place for place, known in enumerate(workers.datasets) if known is dataset)

    def tasks() -> Iterator[Task]:
        for batch in batches:
            drawn.append(batch)
            yield from batch.numbered(number)

    try:
        for read in workers.run(tasks()):
            while drawn[0].is_complete:  # nothing was to be read of it
                yield drawn.popleft()
            drawn[0].add(read)
            while drawn and drawn[0].is_complete:
                yield drawn.popleft()
        yield from drawn
    except GeneratorExit:
        raise
    except (ConnectionError, EOFError, FileNotFoundError) as error:  # what it had sent can no longer be fetched
        _forget(workers)
        raise RuntimeError("a process that reads samples exited unexpectedly") from error
    except BaseException:
        _forget(workers)  # a worker that died takes the others with it
        raise
    finally:
        workers.is_busy = False


def _acquire(dataset: ImageDataset, num_workers: int) -> _Workers:
    """Return workers that know a data set, and mark them busy; if those of this process are, further ones."""
    key = os.getpid(), num_workers
    workers = _workers.get(key)
    if workers is not None and not workers.is_alive:
        _forget(workers)
        workers = None
    if workers is None or workers.is_busy:
        workers = _Workers(num_workers, [dataset])
    elif not any(known is dataset for known in workers.datasets):
        workers = _Workers(num_workers, [*workers.datasets, dataset][-_MAX_DATASETS:])
    if key not in _workers or not _workers[key].is_busy:
        _workers[key] = workers
    workers.is_busy = True
    return workers


def _forget(workers: _Workers) -> None:
    workers.end()
    for key in [key for key, known in _workers.items() if known is workers]:
        del _workers[key]


def _context(reader: SampleReader) -> Any:
    """Return how worker processes start; the fork server loads the libraries once, instead of every worker."""
    if reader.multiprocessing_context is None:
        return None
    context = multiprocessing.get_context(reader.multiprocessing_context)
    context.set_forkserver_preload(["__main__", *reader.modules])
    return context
