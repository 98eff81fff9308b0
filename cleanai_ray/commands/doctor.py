"""The command `doctor`: what this machine has, and what it lacks."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cleanai_ray import __version__
from cleanai_ray.commands.requirements import EXTRAS, NECESSARY, version_of

_GIB = 2**30
_TOLD = ("torch", "torchvision", "torch-pruning")
_LEAST_SHARED = _GIB


@dataclass(frozen=True)
class Finding:
    """A line of the report.

    Attributes:
        state: `ok`; `note`, where a feature is missing; or `lacks`, where something necessary is.
        subject: What was looked at.
        text: What was found.
    """

    state: Literal["ok", "note", "lacks"]
    subject: str
    text: str


def doctor() -> int:
    """Show versions, devices, free memory, writable places, and what is missing for which feature.

    Exit code 1 where something necessary is missing. Nothing is started, and Ray is not contacted.
    """
    found = list(examine())
    lacking = [finding.subject for finding in found if finding.state == "lacks"]
    verdict = f"necessary and missing: {', '.join(lacking)}" if lacking else "nothing necessary is missing"
    width = max(len(finding.subject) for finding in found)
    for finding in found:
        print(f"{finding.state:<5}  {finding.subject:<{width}}  {finding.text}")
    print(f"\n{verdict}")
    return 1 if lacking else 0


def examine() -> Iterator[Finding]:
    """Yield everything that is looked at."""
    yield _python()
    yield Finding("ok", "cleanai-ray", f"{__version__}, in {Path(__file__).parents[1]}")
    yield from _packages()
    yield from _devices()
    yield from _memory()
    yield from _places()
    yield from _extras()


def _python() -> Finding:
    text = f"{platform.python_version()}, {sys.executable}, on {platform.system()} {platform.machine()}"
    return Finding("ok" if sys.version_info >= (3, 10) else "lacks", "Python", text)


def _packages() -> Iterator[Finding]:
    versions = {name: version_of(name) for name in NECESSARY}
    ray = versions["ray"]
    if ray is not None:
        where = os.environ.get("RAY_ADDRESS")
        yield Finding(
            "ok", "Ray", f"{ray}; " + (f"a study joins RAY_ADDRESS, {where}" if where else "a study starts its own")
        )
    for name in _TOLD:
        if versions[name] is not None:
            yield Finding("ok", name, str(versions[name]))
    others = [name for name, version in versions.items() if version is not None and name not in (*_TOLD, "ray")]
    yield Finding("ok", "other packages", f"{len(others)} of {len(NECESSARY) - len(_TOLD) - 1} are installed")
    for name in (name for name, version in versions.items() if version is None):
        yield Finding("lacks", name, f"not installed; pip install {name}")


def _devices() -> Iterator[Finding]:
    from cleanai_ray.analysis.numbers import plural

    yield Finding("ok", "CPU", f"{platform.processor() or platform.machine()}, {plural(os.cpu_count() or 1, 'core')}")
    try:
        import torch
    except Exception as error:
        if version_of("torch") is not None:
            yield Finding("lacks", "torch", f"cannot be imported: {' '.join(str(error).split())[:200]}")
        return
    has_driver = Path("/proc/driver/nvidia/version").exists()
    for index in range(torch.cuda.device_count()):
        yield _gpu(index)
    if torch.cuda.device_count():
        return
    if has_driver:
        built = f"was built for CUDA {torch.version.cuda}" if torch.version.cuda else "was built without CUDA"
        yield Finding("note", "GPUs", f"none that torch can use, though an NVIDIA driver is loaded: torch {built}")
    else:
        yield Finding("note", "GPUs", "none: studies run on the CPU")


def _gpu(index: int) -> Finding:
    import torch

    name = torch.cuda.get_device_name(index)
    try:
        free, total = torch.cuda.mem_get_info(index)
    except RuntimeError as error:
        return Finding("note", f"GPU {index}", f"{name}, which fails: {' '.join(str(error).split())[:200]}")
    return Finding("ok", f"GPU {index}", f"{name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free")


def _memory() -> Iterator[Finding]:
    try:
        from cleanai_ray.nn.memory import free_bytes
    except ImportError:  # without torch, which is reported on its own
        return
    yield Finding("ok", "memory", f"{free_bytes('cpu') / _GIB:.1f} GiB free")
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        state: Literal["ok", "note"] = "ok" if free >= _LEAST_SHARED else "note"
        text = f"{free / _GIB:.1f} GiB free" + ("" if state == "ok" else "; Ray's object store is slow with so little")
        yield Finding(state, "shared memory", text)


def _places() -> Iterator[Finding]:
    yield _place("this folder", Path.cwd(), is_necessary=True)
    try:
        yield _place("temporary files", Path(tempfile.gettempdir()), is_necessary=True)
    except FileNotFoundError as error:
        yield Finding("lacks", "temporary files", str(error.strerror))
    given = os.environ.get("CLEANAI_CACHE")
    if given:
        yield _place("decoded images", Path(given).expanduser(), is_necessary=False)
    yield _place("downloaded weights", Path.home() / ".cache", is_necessary=False)


def _place(subject: str, folder: Path, *, is_necessary: bool) -> Finding:
    """Say whether files can be made in a folder, or in the nearest one above it that exists, and how much is free."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return Finding("lacks" if is_necessary else "note", subject, f"{folder} is not writable: {error.strerror}")
    return Finding("ok", subject, f"{folder} is writable, {shutil.disk_usage(there).free / _GIB:.1f} GiB free")


def _extras() -> Iterator[Finding]:
    for name, extra in EXTRAS.items():
        versions = {one: version_of(one) for one in extra.distributions}
        missing = [one for one, version in versions.items() if version is None]
        if missing:
            wanted = f"{', '.join(missing)} not installed; pip install 'cleanai-ray[{name}]'"
            yield Finding("note", f"[{name}]", f"{extra.features}: {wanted}")
        else:
            told = ", ".join(f"{one} {version}" for one, version in versions.items())
            yield Finding("ok", f"[{name}]", f"{extra.features}: {told}")
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    found = compiler or "no C++ compiler found, which torch.compile needs on CPUs"
    yield Finding("ok" if compiler else "note", "torch.compile", found)
