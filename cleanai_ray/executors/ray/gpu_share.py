"""The part of a GPU's memory that a process may take where several share the GPU."""

from __future__ import annotations

import ray
import torch

_CONTEXT_BYTES = 600 * 2**20
"""Memory that CUDA itself takes in every process, besides torch's: kernels, and the workspaces of its libraries."""


def limit_gpu_memory() -> None:
    """Keep this worker to its share of its GPU, so that it runs out of memory before it takes that of its neighbours.

    Workers with whole GPUs are not limited.
    """
    share = float(ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0))
    if 0 < share < 1 and torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(memory_fraction(share, total), 0)


def memory_fraction(share: float, total_bytes: int) -> float:
    """Return the fraction of a GPU's memory for torch's tensors in a process that has a share of the GPU.

    It is the share less what CUDA itself takes, but at least half the share.

    Args:
        share: Above 0, below 1.
        total_bytes: The GPU's memory.
    """
    return max(share / 2, share - _CONTEXT_BYTES / total_bytes)
