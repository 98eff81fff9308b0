"""Kernels in Triton that reduce activations to sums by channel. They are imported where Triton is installed.

1. `reduce_positions` reads the activations of a layer once and writes, for each sample and channel, six numbers.
2. `find_strongest` finds for each sample the number that its k strongest channels exceed.
3. `add_samples` adds up the numbers of all samples in float64.

The first runs once a layer, the others once for all layers of a batch: a table says where the numbers of each lie.
"""

# mypy: ignore-errors
# ruff: noqa: PLR0913, PLR0915

import triton
import triton.language as tl

ENTRY = 5
"""Columns of a table: offset of the rows, samples, channels, first column of the totals, positions of a sample."""


@triton.jit
def reduce_positions(
    values, rows, num_channels, num_positions, stride_n, stride_c, stride_p, size,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Write sum, sum of squares, sum of absolutes, count of positives, minimum and maximum, each [samples, channels].

    A program reduces BLOCK_C channels of one sample. It adds up in float32, BLOCK_P partial sums a channel at first.
    """
    sample = tl.program_id(0).to(tl.int64)
    channels = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = channels < num_channels
    start = values + sample * stride_n + channels[:, None].to(tl.int64) * stride_c
    sums = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    squares = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    absolutes = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    positive = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    low = tl.full([BLOCK_C, BLOCK_P], float("inf"), tl.float32)
    high = tl.full([BLOCK_C, BLOCK_P], float("-inf"), tl.float32)
    for first in range(0, num_positions, BLOCK_P):
        places = first + tl.arange(0, BLOCK_P)
        mask = exists[:, None] & (places < num_positions)[None, :]
        value = tl.load(start + places[None, :].to(tl.int64) * stride_p, mask=mask, other=0.0).to(tl.float32)
        sums += value
        squares += value * value
        absolutes += tl.abs(value)
        positive += (value > 0).to(tl.float32)
        low = tl.minimum(low, tl.where(mask, value, float("inf")))
        high = tl.maximum(high, tl.where(mask, value, float("-inf")))
    target = rows + sample * num_channels + channels
    tl.store(target, tl.sum(sums, axis=1), mask=exists)
    tl.store(target + size, tl.sum(squares, axis=1), mask=exists)
    tl.store(target + 2 * size, tl.sum(absolutes, axis=1), mask=exists)
    tl.store(target + 3 * size, tl.sum(positive, axis=1), mask=exists)
    tl.store(target + 4 * size, tl.min(low, axis=1), mask=exists)
    tl.store(target + 5 * size, tl.max(high, axis=1), mask=exists)


@triton.jit
def find_strongest(table, arena, top_k, BLOCK: tl.constexpr, ENTRY: tl.constexpr):
    """Write, behind the rows of a layer, the largest sum of each sample that is not among its k strongest.

    k is at most the number of channels less one; a single channel is always the strongest. BLOCK is at least the number
    of channels of every layer.
    """
    entry = table + tl.program_id(1) * ENTRY
    offset, num_samples, num_channels = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    # Programs beyond a layer's samples search its last one again: not every Triton heeds the mask of a scalar store.
    sample = tl.minimum(tl.program_id(0), num_samples - 1)
    index = tl.arange(0, BLOCK)
    sums = tl.load(arena + offset + sample * num_channels + index, mask=index < num_channels, other=float("-inf"))
    limit = tl.full([], float("-inf"), tl.float32)
    number = tl.where(num_channels == 1, 0, tl.minimum(top_k, num_channels - 1) + 1)
    for _ in range(number):
        limit, place = tl.max(sums, axis=0, return_indices=True)
        sums = tl.where(index == place, float("-inf"), sums)
    tl.store(arena + offset + 6 * num_samples * num_channels + sample, limit)


@triton.jit
def add_samples(
    table, arena, totals, extremes, threshold, num_columns,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, ENTRY: tl.constexpr,
):  # fmt: skip
    """Add the rows of every layer to its columns of `totals` [7, columns] and `extremes` [2, columns], float64."""
    entry = table + tl.program_id(1) * ENTRY
    offset, num_samples, num_channels = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    first_column, num_positions = tl.load(entry + 3), tl.load(entry + 4)
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    exists = channels < num_channels
    size = num_samples * num_channels
    least = tl.load(threshold)
    sums = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
    squares = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
    absolutes = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
    means = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
    active = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
    positive = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
    strongest = tl.zeros([BLOCK_N, BLOCK_C], tl.float64)
    low = tl.full([BLOCK_N, BLOCK_C], float("inf"), tl.float32)
    high = tl.full([BLOCK_N, BLOCK_C], float("-inf"), tl.float32)
    for first in range(0, num_samples, BLOCK_N):
        samples = first + tl.arange(0, BLOCK_N)
        mask = exists[None, :] & (samples < num_samples)[:, None]
        place = arena + offset + samples[:, None] * num_channels + channels[None, :]
        limit = tl.load(arena + offset + 6 * size + samples, mask=samples < num_samples, other=0.0)
        value = tl.load(place, mask=mask, other=0.0)
        mean = value.to(tl.float64) / num_positions
        sums += value
        squares += tl.load(place + size, mask=mask, other=0.0)
        absolutes += tl.load(place + 2 * size, mask=mask, other=0.0)
        means += mean
        active += tl.where(mask & (mean > least), 1.0, 0.0)
        positive += tl.load(place + 3 * size, mask=mask, other=0.0)
        strongest += tl.where(mask & (value > limit[:, None]), 1.0, 0.0)
        low = tl.minimum(low, tl.load(place + 4 * size, mask=mask, other=float("inf")))
        high = tl.maximum(high, tl.load(place + 5 * size, mask=mask, other=float("-inf")))
    target = totals + first_column + channels
    _add(target, tl.sum(sums, axis=0), exists)
    _add(target + num_columns, tl.sum(squares, axis=0), exists)
    _add(target + 2 * num_columns, tl.sum(absolutes, axis=0), exists)
    _add(target + 3 * num_columns, tl.sum(means, axis=0), exists)
    _add(target + 4 * num_columns, tl.sum(active, axis=0), exists)
    _add(target + 5 * num_columns, tl.sum(positive, axis=0), exists)
    _add(target + 6 * num_columns, tl.sum(strongest, axis=0), exists)
    lowest = extremes + first_column + channels
    known = tl.load(lowest, mask=exists, other=0.0)
    tl.store(lowest, tl.minimum(known, tl.min(low, axis=0).to(tl.float64)), mask=exists)
    known = tl.load(lowest + num_columns, mask=exists, other=0.0)
    tl.store(lowest + num_columns, tl.maximum(known, tl.max(high, axis=0).to(tl.float64)), mask=exists)


@triton.jit
def _add(target, value, mask):
    tl.store(target, tl.load(target, mask=mask, other=0.0) + value, mask=mask)
