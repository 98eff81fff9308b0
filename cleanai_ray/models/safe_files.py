"""Reading of weights files: safetensors, or what `torch.save` wrote, without unpickling anything that runs code."""

from __future__ import annotations

import argparse
import io
import pathlib
import pickle
import re
from typing import Any

import numpy as np
import safetensors.torch
import torch

from cleanai_ray.errors import ArtifactError, ModelError
from cleanai_ray.models.family import one_line
from cleanai_ray.storage.run_directory import resolve_filesystem

_NUMBERS = (np.float64, np.float32, np.int64, np.int32, np.bool_)


def read_checkpoint(path: str) -> Any:
    """Return the content of a weights file on the CPU.

    Besides tensors and plain values, a file of `torch.save` may hold what trainers put beside them and what cannot run
    code: arguments of argparse, paths and NumPy's numbers.

    Args:
        path: A path or pyarrow filesystem URL.

    Raises:
        ModelError: When the file is missing or damaged, or needs unpickling; one sentence.
    """
    content, is_safetensors = _read(path)
    try:
        if is_safetensors:
            return safetensors.torch.load(content)
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make the unpickler raise anything
        if isinstance(error, pickle.UnpicklingError) and (needed := _needed_class(str(error))):
            raise ModelError(
                f"model.weights '{path}' holds {needed}, and unpickling that can run code; where you trust the file, "
                f"`python -m cleanai_ray.models.convert {path} weights.safetensors` writes its tensors alone"
            ) from error
        reason = one_line(error).partition(". ")[0][:200]
        raise ModelError(
            f"model.weights '{path}' is not a readable {'safetensors' if is_safetensors else 'PyTorch'} "
            f"file of tensors ({type(error).__name__}: {reason})"
        ) from error


def _read(path: str) -> tuple[bytes, bool]:
    """Return a file's content, and whether its name (without a URL's query) has the suffix of safetensors."""
    try:
        filesystem, location = resolve_filesystem(path)
        with filesystem.open_input_file(location) as stream:
            return stream.read(), location.endswith(".safetensors")
    except FileNotFoundError as error:
        raise ModelError(
            f"model.weights '{path}' does not exist; allowed: a .safetensors or state_dict file, 'pretrained', or null"
        ) from error
    except (ArtifactError, OSError) as error:
        raise ModelError(f"model.weights '{path}' cannot be read: {one_line(error)}") from error


def _harmless() -> list[Any]:
    """Return the classes that the unpickler may make besides its own: none of them runs anything."""
    scalar = np.float64(0).__reduce__()[0]
    allowed: list[Any] = [argparse.Namespace, np.dtype, *{type(np.dtype(number)) for number in _NUMBERS}]
    allowed += [(scalar, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")]
    for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"):
        # On this machine a path of another kind of machine is one without a file system.
        pure = getattr(pathlib, name if name.startswith("Pure") else f"Pure{name}")
        allowed += [(pure, f"{module}.{name}") for module in ("pathlib", "pathlib._local")]
    if not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):  # before 2.6: no other names
        classes = [each for each in allowed if not isinstance(each, tuple)]
        return [*classes, scalar, pathlib.PurePosixPath, type(pathlib.Path())]
    return allowed


def _needed_class(message: str) -> str | None:
    """Return the class that the unpickler refused, as it says in its message."""
    found = re.search(r"(?:GLOBAL|class|call|instances? of)\s+`?([A-Za-z_][\w.]*\.[A-Za-z_]\w*)", message)
    return found.group(1) if found else None
