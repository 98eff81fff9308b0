"""The number of processes that decode images, from the CPU cores that this process may use."""

from __future__ import annotations

from typing import Literal

import torch

_MOST = 32
_assigned = 1.0


def assign_cpus(cpus: float) -> None:
    """Tell this process how many CPU cores it may use; one, if nobody tells it."""
    global _assigned
    _assigned = cpus


def loader_processes(setting: Literal["auto"] | int, device: torch.device) -> int:
    """Return the number of decoding processes for `data.num_workers`.

    For `auto` on a GPU, it is every core but one, which feeds the GPU. On a CPU, where the model needs most of them, it
    is a quarter of the cores.

    Args:
        setting: `data.num_workers`.
        device: Where this process computes.
    """
    if setting != "auto":
        return setting
    cores = int(_assigned)
    return min(_MOST, max(0, cores - 1 if device.type == "cuda" else cores // 4))
