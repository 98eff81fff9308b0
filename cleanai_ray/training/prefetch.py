"""Training batches on the device, copied while the device computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from cleanai_ray.nn.modes import to_device


def prefetch(batches: Iterable[tuple[Tensor, Any]], device: torch.device) -> Iterator[tuple[Tensor, Any]]:
    """Yield batches on a device; images [N, C, H, W] on CUDA in channels-last memory.

    On CUDA, each batch is made and copied on a stream of its own. Steps are only queued, not waited for, so the next
    batch is on its way while the device computes the step before it. Inputs have to be in pinned memory for that, or on
    the device.

    Args:
        batches: Pairs of inputs and targets (a tensor, lists or dicts of them, or None).
        device: Where training computes.
    """
    if device.type != "cuda":
        for inputs, targets in batches:
            yield inputs.to(device), to_device(targets, device)
        return
    iterator, stream = iter(batches), torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    while True:
        with torch.cuda.stream(stream):  # also what the iterator itself launches
            pair = next(iterator, None)
            if pair is None:
                return
            inputs, targets = _to_cuda(pair[0], device), to_device(pair[1], device)
        current = torch.cuda.current_stream(device)
        current.wait_stream(stream)
        for tensor in _tensors([inputs, targets]):
            tensor.record_stream(current)
        yield inputs, targets


def _to_cuda(inputs: Tensor, device: torch.device) -> Tensor:
    if inputs.ndim == 4:
        return inputs.to(device, non_blocking=True, memory_format=torch.channels_last)
    return inputs.to(device, non_blocking=True)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of nested lists and dicts that are on a GPU."""
    if isinstance(value, Tensor):
        if value.is_cuda:
            yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
