"""Blocks of activations that fit in the caches of a processor."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor


def cache_sized_blocks(activation: Tensor, limit: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of samples and channels that cut activations [samples, channels, positions] into small blocks.

    Work on one block at a time stays in the processor's caches and needs little memory. The positions of a channel in a
    sample are never cut, so that a sum over them depends on the limit by no more than rounding, and not at all where
    they lie next to each other in memory.

    Args:
        activation: The activations to cut.
        limit: Most activations of a block; exceeded only where one channel of a sample has more positions.
    """
    num_samples, num_channels, num_positions = activation.shape
    channels = min(num_channels, max(1, limit // max(1, num_positions)))
    samples = max(1, limit // max(1, num_channels * num_positions))
    for first in range(0, num_samples, samples):
        for start in range(0, num_channels, channels):
            yield slice(first, first + samples), slice(start, start + channels)
