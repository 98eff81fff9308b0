"""Batches of a data set's samples, on the device that asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from cleanai_ray.data.in_memory import Indices
from cleanai_ray.data.source import ImageDataset
from cleanai_ray.errors import DataError


def batches(
    dataset: ImageDataset,
    indices: Indices,
    batch_size: int,
    *,
    num_workers: int = 0,
    device: str | torch.device = "cpu",
    shuffle_seed: int | None = None,
    drop_last: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over samples in batches.

    Args:
        dataset: What `ImageSource.dataset` returned.
        indices: Samples to read, in this order unless shuffled.
        batch_size: Images a batch; the last may be smaller.
        num_workers: Processes that decode images; data sets in memory need none and use none.
        device: Where the tensors go; on a CUDA device through pinned memory, without waiting for the copy.
        shuffle_seed: Seed of the order; null: as given.
        drop_last: Leave out a last batch that is smaller than the others.

    Yields:
        Images float32 [N, C, H, W] and labels int64 [N].

    Raises:
        DataError: When a sample cannot be read; the message names it.
        ValueError: When batch_size is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; allowed: at least 1")
    order = _order(dataset, indices, shuffle_seed)
    if drop_last:
        order = order[: len(order) - len(order) % batch_size]
    target = torch.device(device)
    pinned = target.type == "cuda"
    if hasattr(dataset, "batch"):
        pairs = _fetch(dataset, order, batch_size, pinned=pinned)
    else:
        pairs = _load(dataset, order, batch_size, num_workers=num_workers, pinned=pinned, seed=shuffle_seed or 0)
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


def _fetch(dataset: Any, order: np.ndarray, batch_size: int, *, pinned: bool) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(order), batch_size):
        images, labels = dataset.batch(order[start : start + batch_size])
        yield (images.pin_memory(), labels.pin_memory()) if pinned else (images, labels)


def _load(
    dataset: ImageDataset, order: np.ndarray, batch_size: int, *, num_workers: int, pinned: bool, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    context = getattr(dataset, "multiprocessing_context", None) if num_workers else None
    loader = DataLoader(
        Subset(dataset, order.tolist()),
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=pinned,
        generator=torch.Generator().manual_seed(seed),
        multiprocessing_context=context,
    )
    fault = None
    try:
        yield from loader
    except DataError as error:
        fault = _without_traceback(error)
        error.__traceback__ = None  # its frames would keep the worker processes until the garbage collector comes
    if fault is not None:
        raise fault


def _without_traceback(error: DataError) -> DataError:
    """Undo what a DataLoader does to an error from a worker process: put a traceback before its message."""
    return DataError(str(error).strip().rpartition("DataError: ")[2])
