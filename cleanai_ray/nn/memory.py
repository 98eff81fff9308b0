"""The memory that a computation may take on a device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

SHARE = 0.5
"""Share of the free memory that one computation plans with; the rest is for what it cannot foresee."""
_UNKNOWN = 4 * 1024**3
"""Free bytes of a machine that does not tell."""
_SYSTEM = Path("/")


def working_bytes(device: torch.device | str) -> int:
    """Return the bytes that one computation may plan to take on a device.

    That is half of what is free. On CPUs, other processes like this one work beside it: it takes the part of the
    machine's memory that its threads are of the machine's cores.
    """
    free = SHARE * free_bytes(device)
    if torch.device(device).type == "cuda":
        return int(free)
    return int(free * min(1.0, torch.get_num_threads() / (os.cpu_count() or 1)))


def free_bytes(device: torch.device | str) -> int:
    """Return the bytes that this process can still allocate on a device.

    On CUDA, that is what the driver has free and what torch keeps for reuse, within the share of the card that
    `torch.cuda.set_per_process_memory_fraction` leaves the process. Elsewhere it is what the machine has available,
    within the limits of the control groups (of a container) that the process is in.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return _free_on_cuda(device)
    return max(0, min([_available(), *_left_in_groups()]))


def _free_on_cuda(device: torch.device) -> int:
    index = torch.cuda.current_device() if device.index is None else device.index
    free, total = torch.cuda.mem_get_info(index)
    reserved, used = torch.cuda.memory_reserved(index), torch.cuda.memory_allocated(index)
    # Since torch 2.8; without it, the fraction is not known.
    fraction = getattr(torch.cuda, "get_per_process_memory_fraction", lambda index: 1.0)(index)
    return max(0, min(free + reserved - used, int(fraction * total) - used))


def _available() -> int:
    """Return the bytes that the machine can give without swapping."""
    try:
        lines = (_SYSTEM / "proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return _UNKNOWN


def _left_in_groups() -> Iterator[int]:
    """Yield what each control group around this process has left: versions 1 and 2, innermost first."""
    try:
        lines = (_SYSTEM / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    root = _SYSTEM / "sys/fs/cgroup"
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _left(root, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            fields = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            yield from _left(root / "memory", path, *fields)


def _left(root: Path, path: str, limit: str, usage: str, cache: str) -> Iterator[int]:
    """Yield what a control group and those around it have left; files in the page cache can be dropped.

    In a container, the path may be that of the host, of which only the group that is mounted at the root is seen.
    """
    inner = root / path.lstrip("/")
    for folder in [inner, *(parent for parent in inner.parents if parent.is_relative_to(root))]:
        try:
            most = int((folder / limit).read_text())
            used = int((folder / usage).read_text())
            counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # No such group, or "max": no limit.
            continue
        yield most - used + int(counts.get(cache, 0))
