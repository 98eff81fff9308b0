"""A folder that holds a model for a place where this package is not: plain code and weights."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from cleanai_ray.deploy._files import check_batch, file_suffix, private_copy, quiet, require_same_output
from cleanai_ray.deploy.one_tensor import returning_one_tensor
from cleanai_ray.deploy.plain_code import plain_code, program_code
from cleanai_ray.deploy.plain_trace import record
from cleanai_ray.deploy.standalone_files import CARD_FILE, CODE_FILE, MARK, NEW_CARD_FILE, PROGRAM_FILE, WEIGHTS_FILE
from cleanai_ray.deploy.torch_export import export_torch
from cleanai_ray.errors import ArtifactError
from cleanai_ray.registry import FORMATS

_OWN = {CODE_FILE, CARD_FILE, NEW_CARD_FILE, WEIGHTS_FILE, PROGRAM_FILE, "__pycache__"}
"""The names that an earlier export may have left in the folder."""


@FORMATS.register("standalone")
@file_suffix("")
def export_standalone(model: nn.Module, example_input: Tensor, path: Path) -> Path:
    """A folder with the network as plain PyTorch code and its weights, which needs torch and nothing else.

    It holds `model.py`, with a function `load`, and `model.safetensors`. Where the network cannot be written as code,
    `model.pt2`, a torch.export program, takes the place of code and weights. Before the files get their names, they are
    loaded and compared with torch on batches of other sizes.

    Args:
        model: The model, which is not changed.
        example_input: Images [N, ...].
        path: The folder; it must be missing, empty, or one that was exported to before.

    Returns:
        The folder.

    Raises:
        ArtifactError: When the folder holds other files, the model cannot be captured, or its outputs differ.
        EvaluationError: When a hook is left on the model.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise ArtifactError(f"'{path}' is a file, and this format is a folder; name another place")
    others = sorted({entry.name for entry in path.iterdir()} - _OWN) if path.is_dir() else []
    if others:
        raise ArtifactError(f"folder '{path}' holds '{others[0]}', which no export wrote; name an empty folder")
    code = path / CODE_FILE
    if code.exists() and MARK not in code.read_text(encoding="utf-8", errors="replace"):
        raise ArtifactError(f"folder '{path}' holds a '{CODE_FILE}' that no export wrote; name an empty folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as made:
        folder = Path(made)
        if reason := _write_code(model, example_input, folder):
            export_torch(model, example_input, folder / PROGRAM_FILE)
            (folder / CODE_FILE).write_text(program_code(type(model).__name__, reason), encoding="utf-8")
            _require_same(model, example_input, folder)
        path.mkdir(exist_ok=True)
        for name in _OWN - {CARD_FILE} - {entry.name for entry in folder.iterdir()}:
            _remove(path / name)
        for entry in folder.iterdir():
            entry.replace(path / entry.name)
    return path


def _write_code(model: nn.Module, example_input: Tensor, folder: Path) -> str:
    """Write a model as code and weights; if it cannot be written so, write nothing and return the reason."""
    copied = returning_one_tensor(private_copy(model), example_input, "standalone")
    try:
        with quiet():
            recorded = record(copied, torch.cat([example_input[:1]] * 2).detach().cpu())
            (folder / CODE_FILE).write_text(plain_code(type(model).__name__, recorded), encoding="utf-8")
        state = {name: value.detach().clone().contiguous() for name, value in recorded.state_dict().items()}
        content = safetensors.torch.save(state, metadata={"format": "pt"})  # `save_file` lets nobody else read it
        (folder / WEIGHTS_FILE).write_bytes(content)
        _require_same(model, example_input, folder)
    except Exception as error:  # Whatever a model raises that is recorded, or its code.
        for entry in folder.iterdir():
            _remove(entry)
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return lines[0]
    return ""


def _require_same(model: nn.Module, example_input: Tensor, folder: Path) -> None:
    """Load the folder, and compare its outputs with the model's on two batches.

    Raises:
        ArtifactError: When they differ.
    """
    spec = importlib.util.spec_from_file_location("_cleanai_standalone", folder / CODE_FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loaded, dense = module.load(), returning_one_tensor(private_copy(model), example_input, "standalone")
    batch = check_batch(example_input)
    with torch.no_grad():
        for images in (batch, batch[:1]):
            require_same_output(dense(images), loaded(images), "standalone")
    _remove(folder / "__pycache__")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
