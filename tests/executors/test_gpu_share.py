"""The share of a GPU that a process may fill, less what CUDA itself takes there."""

from __future__ import annotations

import pytest

from cleanai_ray.executors.ray.gpu_share import memory_fraction

GIB = 2**30


@pytest.mark.parametrize(
    ("share", "gibibytes", "fraction"),
    [
        (0.25, 80, 0.25 - 600 / 81920),
        (0.5, 16, 0.5 - 600 / 16384),
        (0.05, 8, 0.025),  # a twentieth of 8 GiB is less than CUDA itself takes
    ],
)
def test_what_cuda_takes_is_left_out(share: float, gibibytes: int, fraction: float) -> None:
    assert memory_fraction(share, gibibytes * GIB) == pytest.approx(fraction)
