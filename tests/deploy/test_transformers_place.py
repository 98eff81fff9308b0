"""The folder that an export for transformers is written to: it is replaced file by file, and may be left half way."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cleanai_ray.deploy.transformers_folder import _put, _require_room, export_transformers
from cleanai_ray.errors import ArtifactError


@pytest.mark.parametrize("content", ["{", "[]", '["pruned_with"]', "\xff"])
def test_a_broken_configuration_is_of_no_export(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    (tmp_path / "model.safetensors").write_bytes(b"mine")
    with pytest.raises(ArtifactError, match=r"holds 'config\.json', which no export wrote"):
        export_transformers(nn.Linear(2, 2), torch.zeros(1, 2), tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == b"mine"


@pytest.mark.parametrize("done", range(4))
def test_a_folder_that_was_left_half_way_is_exported_to_again(
    done: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files are moved, and a shard of an earlier export is deleted: whenever that ends, the folder stays ours."""
    made, folder = tmp_path / "made", tmp_path / "small"

    def written(**files: str) -> None:
        for name, content in files.items():
            (made / name).write_text(content)

    class KilledError(Exception):
        pass

    steps = 0

    def ending(real: Any) -> Any:
        def step(*arguments: Any) -> Any:
            nonlocal steps
            if steps == done:
                raise KilledError
            steps += 1
            return real(*arguments)

        return step

    new = {"config.json": '{"pruned_with": "new"}', "model.safetensors": "new"}
    made.mkdir()
    folder.mkdir()
    for name, content in {**new, "model-00001-of-00002.safetensors": "old", "README.md": "card"}.items():
        (folder / name).write_text(content.replace("new", "old"))
    written(**new)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", ending(Path.replace))
        patch.setattr(Path, "unlink", ending(Path.unlink))
        with contextlib.suppress(KilledError):
            _put(made, folder)
    assert steps == done
    _require_room(folder)
    assert (folder / "model.safetensors").read_text() == ("new" if done > 1 else "old")
    written(**new)
    _put(made, folder)
    assert {entry.name: entry.read_text() for entry in folder.iterdir()} == {**new, "README.md": "card"}


@pytest.mark.parametrize("done", range(2))
def test_a_new_folder_that_was_left_half_way_is_exported_to_again(
    done: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, folder = tmp_path / "made", tmp_path / "small"
    moved: list[str] = []
    made.mkdir()
    for name in ("generation_config.json", "config.json", "added_tokens.json"):
        (made / name).write_text('{"pruned_with": "new"}')
    real = Path.replace

    def replace(entry: Path, target: Path) -> Path:
        if len(moved) > done:
            raise InterruptedError
        moved.append(entry.name)
        return real(entry, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(InterruptedError):
        _put(made, folder)
    assert len(moved) == done + 1
    _require_room(folder)
