"""SplitMix64 (Steele, Lea and Flood 2014): random bits that depend on a seed and a position alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(seeds: ArrayLike, positions: ArrayLike = 0) -> np.ndarray:
    """Return the outputs of generators at given positions of their sequences, without computing those before.

    Args:
        seeds: The seed of each generator, unsigned 64-bit integers.
        positions: The position of each output, from 0; broadcast against the seeds.

    Returns:
        uint64 of the common shape.
    """
    with np.errstate(over="ignore"):  # all arithmetic is modulo 2^64
        steps = np.asarray(positions, dtype=np.uint64) + np.uint64(1)
        value = np.asarray(seeds, dtype=np.uint64) + steps * _GAMMA
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(value ^ (value >> np.uint64(31)))
