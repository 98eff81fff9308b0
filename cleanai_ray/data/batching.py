"""Batches of a data set's samples, on the device that asks for them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cleanai_ray.data.augment import Indices
from cleanai_ray.data.kept_images import KeptImages
from cleanai_ray.data.loading import read_batches
from cleanai_ray.data.pixels import delivers_pixels
from cleanai_ray.data.reading import Task
from cleanai_ray.data.sample_batch import KeptBatch, SampleBatch
from cleanai_ray.data.source import ImageDataset
from cleanai_ray.data.to_device import NumberedBatch, to_device
from cleanai_ray.data.unreadable import UnreadableSamples
from cleanai_ray.errors import ShareError

Share = tuple[int, int]
"""Rank of a process, and how many processes share out each batch."""


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """The way in which samples are read, ordered and cut into batches.

    Attributes:
        num_workers: Processes that decode images, and stay for later batches; data sets in memory need none and use
            none.
        device: Where the tensors go; on a CUDA device as bytes through pinned memory, without waiting for the copy, and
            normalised there.
        shuffle_seed: Seed of the order and of random transforms; None: in the order given, transforms of seed 0.
        drop_last: Leave out a last batch that is smaller than the others.
        fill: Replace an unreadable sample by the next readable one of the whole batch, the same whatever the share, so
            that batches keep their size; by default it is left out of its batch.
        first_batch: Number of the first batch to read; those before it are not read.
    """

    num_workers: int = 0
    device: str | torch.device = "cpu"
    shuffle_seed: int | None = None
    drop_last: bool = False
    fill: bool = False
    first_batch: int = 0


def batches(
    dataset: ImageDataset,
    indices: Indices,
    batch_size: int,
    options: BatchOptions | None = None,
    *,
    share: Share = (0, 1),
    unreadable: UnreadableSamples | None = None,
    kept: KeptImages | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over samples in batches.

    Random transforms of a sample depend on `shuffle_seed` and the sample's index alone: not on the batch that it is
    in, on `num_workers` or on `share`.

    Args:
        dataset: What `ImageSource.dataset` returned.
        indices: Samples to read, in this order unless shuffled.
        batch_size: Images a batch, over all processes that share it out; the last may be smaller.
        options: How samples are read, ordered and cut into batches.
        share: Rank and world size. Only the positions rank, rank + world size, ... of every batch are read; all ranks
            together yield what a single process would.
        unreadable: Collects the samples that cannot be read, and limits how many there may be; by default none.
        kept: Where decoded images of the data set are kept, so that those which are there are not decoded again.

    Yields:
        Images float32 [N, C, H, W] and labels int64 [N]. A batch, or a share of one, without samples is not yielded.

    Raises:
        DataError: When a sample cannot be read, or more than `unreadable` allows; the message names it.
        ValueError: When batch_size is below 1, or when a rank is not below its world size.
    """
    found = numbered_batches(dataset, indices, batch_size, options, share=share, unreadable=unreadable, kept=kept)
    return ((images, labels) for _, images, labels in found)


def numbered_batches(
    dataset: ImageDataset,
    indices: Indices,
    batch_size: int,
    options: BatchOptions | None = None,
    *,
    share: Share = (0, 1),
    unreadable: UnreadableSamples | None = None,
    kept: KeptImages | None = None,
) -> Iterator[NumberedBatch]:
    """Iterate over samples in batches that also say which samples they hold; arguments and errors as for `batches`.

    Yields:
        Indices of the samples int64 [N], on the CPU, then images and labels as `batches` yields them.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; allowed: at least 1")
    if not 0 <= share[0] < share[1]:
        raise ValueError(f"share is {share}; allowed: a rank from 0, and a world size above it")
    options = options or BatchOptions()
    order = _order(dataset, indices, options.shuffle_seed)
    if options.drop_last:
        order = order[: len(order) - len(order) % batch_size]
    order = order[options.first_batch * batch_size :]
    cut = _Cut(order=order, batch_size=batch_size, share=share, options=options)
    normalise = getattr(dataset, "normalise", None)
    if hasattr(dataset, "pixel_batch"):
        yield from to_device(_fetch(dataset.pixel_batch, cut), normalise, options.device, ahead=True)
        return
    if hasattr(dataset, "batch"):
        yield from to_device(_fetch(dataset.batch, cut), None, options.device, ahead=True)
        return
    normalise = normalise if delivers_pixels(dataset) else None
    unreadable = UnreadableSamples() if unreadable is None else unreadable
    with closing(_load(dataset, cut, unreadable, kept)) as loaded:
        # Without workers, random transforms draw from the global generator, which is not shared with another thread.
        yield from to_device(loaded, normalise, options.device, ahead=options.num_workers > 0)


def require_one_each(share: Share, number: int, role: str) -> None:
    """Refuse more processes than a batch has samples: one of them would have none, and the others wait for it.

    Args:
        share: Rank of this process, and how many processes share out each batch.
        number: Samples of the largest batch.
        role: The role of the samples.

    Raises:
        ShareError: When there are more processes.
    """
    if number < share[1]:
        raise ShareError(
            f"{share[1]} workers share a batch of {number} {role} images; allowed: at most {number} workers"
        )


def _order(dataset: ImageDataset, indices: Indices, shuffle_seed: int | None) -> np.ndarray:
    order = np.asarray(indices, dtype=np.int64)
    if shuffle_seed is None:
        return order
    generator = np.random.default_rng(shuffle_seed)
    if hasattr(dataset, "shuffled"):
        return dataset.shuffled(order, generator)
    return generator.permutation(order)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Cut:
    """An order of samples, cut into batches and shares."""

    order: np.ndarray
    batch_size: int
    share: Share
    options: BatchOptions

    @property
    def seed(self) -> int:
        """The seed of random transforms."""
        return self.options.shuffle_seed or 0

    def batches(self) -> Iterator[tuple[np.ndarray, list[int]]]:
        """Yield the indices of each batch, and the places of this share in it."""
        rank, world_size = self.share
        for start in range(0, len(self.order), self.batch_size):
            whole = self.order[start : start + self.batch_size]
            places = list(range(rank, len(whole), world_size))
            if places:
                yield whole, places


def _fetch(read: Callable[[np.ndarray, int], tuple[Tensor, Tensor]], cut: _Cut) -> Iterator[NumberedBatch]:
    for whole, places in cut.batches():
        own = whole[places]
        images, labels = read(own, cut.seed)
        yield torch.from_numpy(own), images, labels


def _load(
    dataset: ImageDataset, cut: _Cut, unreadable: UnreadableSamples, kept: KeptImages | None
) -> Generator[NumberedBatch]:
    options = cut.options
    # Only images of one kind can be put together again; of other data sets, a worker reads a whole batch.
    num_tasks = max(1, options.num_workers) if delivers_pixels(dataset) else 1

    def planned() -> Iterator[SampleBatch]:
        for whole, places in cut.batches():
            task = Task(indices=whole, places=places, seed=cut.seed, limit=unreadable.limit, fill=options.fill)
            yield SampleBatch(task, num_tasks) if kept is None else KeptBatch(task, num_tasks, kept)

    with closing(read_batches(dataset, planned(), options.num_workers)) as loaded:
        for batch, reader in loaded:
            found = batch.assemble(unreadable, reader.__getitem__)
            if found is not None:
                yield found
