"""The GPUs of a cluster's nodes, as torch sees them there."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_LOG = logging.getLogger(__name__)
_TIMEOUT = 60.0
"""Seconds to wait for the nodes' answers; a process there has to load torch."""


def gpu_memory() -> tuple[int, ...]:
    """Return the bytes of memory of every GPU that torch finds on the nodes for which Ray lists GPUs.

    The tasks reserve no GPU, so that they wait for none; their processes end at once and leave no memory taken.
    """
    ask: Any = ray.remote(num_cpus=0, num_gpus=0, max_calls=1)(_memory_here)
    answers = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU", 0)
    ]
    return tuple(size for answer in answers for size in _answer(answer))


def _answer(reference: Any) -> Sequence[int]:
    try:
        return ray.get(reference, timeout=_TIMEOUT)
    except (ray.exceptions.RayError, TimeoutError) as error:
        _LOG.warning("a node does not say which GPUs it has: %s", " ".join(str(error).split()))
        return ()


def _memory_here() -> list[int]:
    # Ray may hide all GPUs of a node from processes that reserve none; a list of some is that of the node's user.
    if not os.environ.get("CUDA_VISIBLE_DEVICES"):
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    import torch

    return [torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())]
