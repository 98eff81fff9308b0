"""Peak memory of a forward pass."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

_CPU = 0
_QUIET = "99"
"""A log level above all levels at which the profiler's library writes to the terminal."""


def peak_memory(model: nn.Module, forward: Callable[[Tensor], Any], batch: Tensor) -> int:
    """Return the bytes of a model's parameters and buffers, of a batch, and of torch's further allocations at the peak.

    Memory of other models is not counted, nor memory that a library allocates without torch.

    Args:
        model: The model.
        forward: Runs it.
        batch: Images [N, ...] on the device where it runs.
    """
    state = [*model.parameters(), *model.buffers(), batch]
    own = sum(tensor.numel() * tensor.element_size() for tensor in state)
    return own + (_cuda_peak if batch.device.type == "cuda" else _cpu_peak)(forward, batch)


def _cuda_peak(forward: Callable[[Tensor], Any], batch: Tensor) -> int:
    torch.cuda.synchronize(batch.device)
    torch.cuda.reset_peak_memory_stats(batch.device)
    before = torch.cuda.memory_allocated(batch.device)
    forward(batch)
    torch.cuda.synchronize(batch.device)
    return torch.cuda.max_memory_allocated(batch.device) - before


def _cpu_peak(forward: Callable[[Tensor], Any], batch: Tensor) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", _QUIET)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        forward(batch)
    held = peak = 0
    for change in _changes(profiler):
        held += change
        peak = max(peak, held)
    return peak


def _changes(profiler: profile) -> Iterator[int]:
    """Yield the bytes that torch allocated (or freed, below 0) on the CPU, one allocation at a time."""
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    for event in sorted(changes, key=lambda event: event["ts"]):
        if event["args"]["Device Type"] == _CPU:
            yield event["args"]["Bytes"]
