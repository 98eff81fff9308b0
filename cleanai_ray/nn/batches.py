"""The batches in which a processor runs a model fastest."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cleanai_ray.nn.activation_size import largest_activation
from cleanai_ray.nn.modes import evaluation_mode

_CACHED_BYTES = 8 * 1024**2
"""Activations that a processor's caches hold. MobileNet-V2 at 224 pixels takes twice as long in batches of 32."""


@dataclass(frozen=True, kw_only=True)
class FastLayout:
    """How a processor should get images.

    Attributes:
        size: Images at once.
        channels_last: Whether the channels of images [N, C, H, W] are last in memory. Convolutions and batch-norms of
            that layout are faster (1.2 to 2 times, without exception in those measured).
    """

    size: int
    channels_last: bool


def fast_layout(model: nn.Module, image: Tensor) -> FastLayout | None:
    """Return how a model on a processor should get images; None elsewhere, where it matters less.

    None, too, if the model cannot run the image: whoever runs it says why.

    Args:
        model: The model; it is left as it was.
        image: One image, [1, ...], on the model's device.
    """
    if image.device.type != "cpu":
        return None
    layouts = {False: image}
    if image.dim() == 4:
        # A model may rely on the usual layout: `view` cannot flatten maps of another one.
        layouts = {True: image.contiguous(memory_format=torch.channels_last), False: image.contiguous()}
    for channels_last, value in layouts.items():
        with contextlib.suppress(Exception), torch.no_grad(), evaluation_mode(model):
            largest = largest_activation(model, lambda value=value: model(value))  # type: ignore[misc]
            return FastLayout(size=_fast_size(largest), channels_last=channels_last)
    return None


def fast_size(device: torch.device, activation: int) -> int | None:
    """Return how many images a processor should run at once; None on other devices.

    Args:
        device: The device.
        activation: Bytes of the largest activation of one image.
    """
    return _fast_size(activation) if device.type == "cpu" else None


def _fast_size(activation: int) -> int:
    return max(2, _CACHED_BYTES // max(activation, 1))


def fast_batches(images: Tensor, layout: FastLayout | None) -> list[Tensor]:
    """Return images in batches of at most some size, in a layout. Values are the same up to rounding.

    Args:
        images: Images [N, ...].
        layout: What `fast_layout` returned; None: the images as they are.
    """
    if layout is None:
        return [images]
    parts = list(images.split(layout.size))
    return [part.contiguous(memory_format=torch.channels_last) for part in parts] if layout.channels_last else parts


def in_batches_of(batches: Sequence[Tensor], size: int) -> list[Tensor]:
    """Return the same samples in batches of at most some size; small batches are put together.

    Nothing is copied where all but the last batch are more than half as large as the size, and no larger.

    Args:
        batches: Batches of samples, in order.
        size: The size.
    """
    if all(size < 2 * len(batch) <= 2 * size for batch in batches[:-1]) and len(batches[-1]) <= size:
        return list(batches)
    groups: list[list[Tensor]] = []
    for batch in (part for each in batches for part in each.split(size)):
        alike = bool(groups) and batch.shape[1:] == groups[-1][0].shape[1:]
        if alike and sum(map(len, groups[-1])) + len(batch) <= size:
            groups[-1].append(batch)
        else:
            groups.append([batch])
    return [group[0] if len(group) == 1 else torch.cat(group) for group in groups]
