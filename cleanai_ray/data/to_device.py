"""The way of batches to the device: as bytes, through pinned memory, some ahead of the work."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
NumberedBatch = tuple[Tensor, Tensor, Tensor]
"""Indices of the samples int64 [N], on the CPU; their images and labels."""

_AHEAD = 2
"""Batches that lie ready in pinned memory."""
_POLL_SECONDS = 0.1


def to_device(
    found: Iterable[NumberedBatch],
    normalise: Callable[[Tensor], Tensor] | None,
    device: str | torch.device,
    *,
    ahead: bool,
) -> Iterator[NumberedBatch]:
    """Yield batches whose images and labels are on a device, normalised there.

    Args:
        found: Batches in the host's memory.
        normalise: Applied to the images there; None if they are inputs already.
        device: Where they go.
        ahead: True if another thread may fetch the next ones meanwhile; on CUDA devices alone.
    """
    target = torch.device(device)
    if target.type == "cuda":
        found = ((numbers, images.pin_memory(), _each(labels, Tensor.pin_memory)) for numbers, images, labels in found)
        found = fetched_ahead(found) if ahead else found
    for numbers, images, labels in found:
        moved = images.to(target, non_blocking=True), _each(labels, lambda value: value.to(target, non_blocking=True))
        yield numbers, (moved[0] if normalise is None else normalise(moved[0])), moved[1]


def _each(labels: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return labels, a tensor or a list of dicts of tensors, with every tensor changed."""
    if isinstance(labels, Tensor):
        return change(labels)
    return [{name: change(value) for name, value in entry.items()} for entry in labels]


def fetched_ahead(values: Iterable[T], count: int = _AHEAD) -> Iterator[T]:
    """Yield values that another thread fetches in advance.

    Args:
        values: They are iterated over in the thread, which ends when the consumer stops.
        count: Values that wait at most.
    """
    waiting: queue.Queue[tuple[T | None, BaseException | None, bool]] = queue.Queue(count)
    stopped = threading.Event()

    def put(value: T | None, error: BaseException | None = None, is_end: bool = False) -> bool:
        while not stopped.is_set():
            try:
                waiting.put((value, error, is_end), timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def fetch() -> None:
        try:
            if all(put(value) for value in values):
                put(None, is_end=True)
        except BaseException as error:
            put(None, error, is_end=True)

    thread = threading.Thread(target=fetch, name="cleanai-batches", daemon=True)
    thread.start()
    try:
        while True:
            value, error, is_end = waiting.get()
            if error is not None:
                raise error
            if is_end:
                return
            yield value  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
