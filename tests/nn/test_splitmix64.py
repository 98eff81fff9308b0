from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from cleanai_ray.nn.splitmix64 import splitmix64
from cleanai_ray.nn.splitmix64_tensor import shifted, splitmix64_tensor


def test_outputs_are_those_of_the_published_generator() -> None:
    # The first values from seeds 0 and 1234567, as published test vectors of splitmix64.c give them.
    assert splitmix64(0, range(3)).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert splitmix64(1234567, [0, 1]).tolist() == [6457827717110365317, 3203168211198807973]


def test_seeds_and_positions_are_broadcast_and_the_largest_wrap_around() -> None:
    table = splitmix64([[0], [1234567], [2**64 - 1]], [0, 1, 2**64 - 1])
    assert table.shape == (3, 3)
    assert table.dtype == np.uint64
    assert table[0, 1] == 0x6E789E6AA1B965F4
    assert table[1, 0] == 6457827717110365317
    # One step back from seed 0's first output: the state is the seed itself, which the finalizer maps 0 to 0.
    assert table[0, 2] == 0


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=9), st.integers(0, 2**32))
def test_tensors_hold_the_same_bits(seeds: list[int], position: int) -> None:
    given_seeds = np.array(seeds, dtype=np.uint64)
    bits = splitmix64_tensor(torch.from_numpy(given_seeds.view(np.int64)), position)
    expected = splitmix64(given_seeds, position)
    assert np.array_equal(bits.numpy().view(np.uint64), expected)
    assert shifted(bits, 11).tolist() == (expected >> np.uint64(11)).tolist()
