"""Weights alone, as a safetensors file."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from cleanai_ray.deploy._files import file_suffix
from cleanai_ray.nn.weights import safetensors_bytes
from cleanai_ray.registry import FORMATS
from cleanai_ray.storage.whole_files import replaced_whole


@FORMATS.register("state_dict")
@file_suffix(".safetensors")
def export_state_dict(model: nn.Module, example_input: Tensor, path: Path) -> Path:
    """Weights alone, as a safetensors file for `load_state_dict`.

    Args:
        model: The model, which is not changed.
        example_input: Unused; every format takes it.
        path: Where to write.

    Returns:
        The path that was written.
    """
    del example_input
    path = Path(path)
    with replaced_whole(path) as temporary:
        temporary.write_bytes(safetensors_bytes(model))
    return path
