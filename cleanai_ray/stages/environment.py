"""The environment of a run, for environment.json: versions, hardware, and the number of samples of each role."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import torch

from cleanai_ray import __version__
from cleanai_ray.evaluation.machine import cpu_name
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


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe_samples(workspace: Workspace) -> dict[str, Any]:
    """Return the number of samples of each role."""
    roles = workspace.roles
    counts = {name: len(getattr(roles, name)) for name in ("calibration", "training", "validation", "evaluation")}
    return {**counts, "calibration_withheld_from_training": roles.calibration_withheld}
