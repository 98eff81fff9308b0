"""One pass of a classifier over samples, from whose logits every score is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cleanai_ray.config.evaluation import Precision
from cleanai_ray.nn.hooks import require_no_hooks
from cleanai_ray.nn.modes import evaluation_mode
from cleanai_ray.tasks.accuracy import logits_of

NumberedBatch = tuple[Tensor, Tensor, Tensor]
"""Indices of samples int64 [N] on the CPU, images [N, ...] and labels [N]."""

_NARROW = (torch.float16, torch.bfloat16)


def run_over(
    model: nn.Module,
    batches: Iterable[NumberedBatch],
    receive: Callable[[Tensor, Tensor, Tensor], None],
    *,
    device: torch.device | str = "cpu",
    precision: Precision = "float32",
) -> None:
    """Run a classifier in evaluation mode, once on each batch; modes and weights are put back as they were.

    On CUDA, convolutions run in channels-last. On CPUs they do not: the last bits differ, a ResNet-20 gains nothing,
    and torch's oneDNN crashes in the backward pass of strided convolutions that are left in that layout.

    Args:
        model: Maps images [N, ...] to logits [N, classes]. It is moved to the device.
        batches: The samples; the last batch may be smaller.
        receive: Called for each batch with the indices, the logits, in float32 or wider, and the labels int64 on the
            device. It should not wait for the device.
        device: Where to compute.
        precision: What matrix products and convolutions are computed in, by autocast. A model with weights in another
            format than float32 computes in its own.

    Raises:
        EvaluationError: When a hook is left on the model, or the output is not [N, classes].
    """
    require_no_hooks(model)
    device = torch.device(device)
    dtype = getattr(torch, precision)
    is_narrow = dtype in _NARROW and all(value.dtype == torch.float32 for value in model.parameters())
    model.to(device)
    # The loop is inside of one autocast, so that weights are cast once and not for each batch.
    with (
        evaluation_mode(model),
        channels_last(model, enabled=device.type == "cuda") as is_channels_last,
        torch.no_grad(),
        torch.autocast(device.type, dtype if is_narrow else None, enabled=is_narrow),
    ):
        for numbers, images, labels in batches:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True).long()
            if is_channels_last and images.ndim == 4:
                images = images.contiguous(memory_format=torch.channels_last)
            logits = logits_of(model, images)
            with torch.autocast(device.type, enabled=False):
                receive(numbers, logits.float() if logits.dtype in _NARROW else logits, labels)


@contextmanager
def channels_last(model: nn.Module, *, enabled: bool = True) -> Iterator[bool]:
    """Lay out the weights of two-dimensional convolutions channels-last, and put the very tensors back on leaving.

    Yields:
        True if there are any such weights. A model without, such as one that onnxruntime runs, gets images as they are.
    """
    kept = [(weight, weight.data) for weight in model.parameters() if enabled and weight.ndim == 4]
    try:
        for weight, values in kept:
            weight.data = values.contiguous(memory_format=torch.channels_last)
        yield bool(kept)
    finally:
        for weight, values in kept:
            weight.data = values
