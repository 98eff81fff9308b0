"""Batches of a data set's samples, on the device that asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, multiprocessing
from torch.utils.data import DataLoader

from cleanai_ray.data.augment import Indices
from cleanai_ray.data.reading import BatchReader, unchanged
from cleanai_ray.data.source import ImageDataset
from cleanai_ray.data.unreadable import UnreadableSamples

Share = tuple[int, int]
"""Rank of a process, and how many processes share out each batch."""


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """The way in which samples are read, ordered and cut into batches.

    Attributes:
        num_workers: Processes that decode images; data sets in memory need none and use none.
        device: Where the tensors go; on a CUDA device through pinned memory, without waiting for the copy.
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

    Yields:
        Images float32 [N, C, H, W] and labels int64 [N]. A batch, or a share of one, without samples is not yielded.

    Raises:
        DataError: When a sample cannot be read, or more than `unreadable` allows; the message names it.
        ValueError: When batch_size is below 1, or when a rank is not below its world size.
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
    target, seed = torch.device(options.device), options.shuffle_seed or 0
    pinned = target.type == "cuda"
    if hasattr(dataset, "batch"):
        pairs = _fetch(dataset, order, batch_size, share, pinned=pinned, seed=seed)
    else:
        unreadable = UnreadableSamples() if unreadable is None else unreadable
        reader = BatchReader(dataset, order, batch_size, share, seed=seed, limit=unreadable.limit, fill=options.fill)
        pairs = _load(reader, unreadable, num_workers=options.num_workers, pinned=pinned, seed=seed)
    for images, labels in pairs:
        yield images.to(target, non_blocking=pinned), labels.to(target, non_blocking=pinned)


def _order(dataset: ImageDataset, indices: Indices, shuffle_seed: int | None) -> np.ndarray:
    order = np.asarray(indices, dtype=np.int64)
    if shuffle_seed is None:
        return order
    generator = np.random.default_rng(shuffle_seed)
    if hasattr(dataset, "shuffled"):
        return dataset.shuffled(order, generator)
    return generator.permutation(order)


def _fetch(
    dataset: Any, order: np.ndarray, batch_size: int, share: Share, *, pinned: bool, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    rank, world_size = share
    for start in range(0, len(order), batch_size):
        own = order[start : start + batch_size][rank::world_size]
        if len(own):
            images, labels = dataset.batch(own, seed)
            yield (images.pin_memory(), labels.pin_memory()) if pinned else (images, labels)


def _load(
    reader: BatchReader, unreadable: UnreadableSamples, *, num_workers: int, pinned: bool, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    loader = DataLoader(
        reader,
        batch_size=None,
        collate_fn=unchanged,
        num_workers=num_workers,
        pin_memory=pinned,
        generator=torch.Generator().manual_seed(seed),
        multiprocessing_context=_context(reader) if num_workers else None,
    )
    for pair, found, fault in loader:
        for where, reason in found.items():
            unreadable.add(where, reason)
        if fault is not None:
            raise fault
        if pair is not None:
            yield pair[0], pair[1]


def _context(reader: BatchReader) -> Any:
    """Return how worker processes start; the fork server loads the libraries once, instead of every worker."""
    if reader.multiprocessing_context is None:
        return None
    context = multiprocessing.get_context(reader.multiprocessing_context)
    context.set_forkserver_preload(["__main__", *reader.modules])
    return context
