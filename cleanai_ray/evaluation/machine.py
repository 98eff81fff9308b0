"""Names of this machine's hardware."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def cpu_name() -> str:
    """Return the model name of this machine's processor, or its architecture where the model name is not known."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def device_name(device: torch.device) -> str:
    """Return the model name of a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def describe_device(device: torch.device) -> str:
    """Return a device as torch names it; of a GPU, with its model name in brackets."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
