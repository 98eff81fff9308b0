"""SplitMix64 on any device: the outputs of `nn.splitmix64`, as tensors."""

from __future__ import annotations

from torch import Tensor


def splitmix64_tensor(seeds: Tensor, positions: Tensor | int = 0) -> Tensor:
    """Return the outputs of generators at given positions of their sequences; see `nn.splitmix64.splitmix64`.

    Args:
        seeds: The seed of each generator: the bits of an unsigned 64-bit integer, as int64.
        positions: The position of each output, from 0; broadcast against the seeds.

    Returns:
        The bits of the outputs, as int64 of the common shape. Nothing waits for the device.
    """
    steps = positions + 1 if isinstance(positions, Tensor) else seeds.new_full((), positions + 1)
    value = seeds + steps * _signed(0x9E3779B97F4A7C15)
    value = (value ^ shifted(value, 30)) * _signed(0xBF58476D1CE4E5B9)
    value = (value ^ shifted(value, 27)) * _signed(0x94D049BB133111EB)
    return value ^ shifted(value, 31)


def shifted(value: Tensor, bits: int) -> Tensor:
    """Return unsigned integers shifted to the right, as their bits in int64."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(constant: int) -> int:
    """Return the int64 of the same bits as an unsigned integer."""
    return constant - (1 << 64) if constant >= 1 << 63 else constant
