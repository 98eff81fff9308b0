"""The environment of a run, for environment.json: versions, hardware, and the number of samples of each role."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from cleanai_ray import __version__
from cleanai_ray.config.digests import digest
from cleanai_ray.evaluation.machine import cpu_name, device_name
from cleanai_ray.stages.numerics import describe_numerics
from cleanai_ray.stages.workspace import Workspace

_PACKAGES = ("ray", "torch", "torchvision", "torch-pruning", "numpy", "pyarrow", "polars", "altair", "reportlab")


def describe_environment() -> dict[str, Any]:
    """Return the versions of the packages and the hardware of this machine.

    The version of a package that is importable but not installed, as in the working directory of a job, is None.
    """
    packages = {name: _version_of(name) for name in _PACKAGES}
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "version": __version__,
        "commit": commit_of(Path(__file__).parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "hardware": {
            "cpu": cpu_name(),
            "cores": os.cpu_count() or 1,
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "gpus": gpus,
        },
    }


def commit_of(folder: Path) -> str | None:
    """Return the commit that a folder is checked out at, `+` after it where files differ; None outside a checkout."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe_worker(workspace: Workspace) -> dict[str, Any]:
    """Return where this process computes: its node and device, what drives it, and the numerical settings."""
    device, is_gpu = workspace.device, workspace.device.type == "cuda"
    return {
        "node": platform.node(),
        "device": device_name(device),
        "threads": None if is_gpu else torch.get_num_threads(),
        "torch": torch.__version__,
        "driver": _driver_version() if is_gpu else None,
        "cuda": torch.version.cuda if is_gpu else None,
        "cudnn": torch.backends.cudnn.version() if is_gpu else None,
        "gpu_memory_gib": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1) if is_gpu else None,
        "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False) if is_gpu else None,
        "numerics": describe_numerics(),
    }


def worker_note(workspace: Workspace) -> dict[str, Any]:
    """Return `describe_worker` under a name that workers have in common whose descriptions are equal."""
    found = describe_worker(workspace)
    return {digest(found): found}


def _driver_version() -> str | None:
    """Return the version of NVIDIA's kernel driver; None where it does not tell."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return None
    found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return found and found[1]


def describe_samples(workspace: Workspace) -> dict[str, Any]:
    """Return the number of samples of each role."""
    roles = workspace.roles
    counts = {name: len(getattr(roles, name)) for name in ("calibration", "training", "validation", "evaluation")}
    chosen = {"selection": len(roles.selection), "selection_split": roles.selection_split}
    return {
        **counts,
        **(chosen if len(roles.selection) else {}),
        "calibration_withheld_from_training": roles.calibration_withheld,
    }
