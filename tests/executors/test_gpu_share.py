"""The GPUs of a node, and the share of one that a process may fill, less what CUDA itself takes there."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from cleanai_ray.executors.ray import gpus
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


@pytest.mark.parametrize(
    ("listed", "found"),
    [(None, [80, 40, 20]), ("", [80, 40, 20]), ("2,0", [20, 80])],  # Ray hides all; the user names some
)
def test_a_node_tells_of_the_gpus_that_its_user_lists(
    monkeypatch: pytest.MonkeyPatch, listed: str | None, found: list[int]
) -> None:
    def visible() -> list[int]:
        return [int(index) for index in os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2").split(",") if index]

    def properties(index: int) -> SimpleNamespace:
        return SimpleNamespace(total_memory=(80, 40, 20)[visible()[index]])

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(visible()))
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    assert gpus._memory_here() == found
