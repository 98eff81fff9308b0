from __future__ import annotations

import os
from pathlib import Path

import pytest

from cleanai_ray.storage.whole_files import is_temporary, replaced_whole


def test_a_file_appears_whole_and_its_temporary_one_has_its_suffix(tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.pt2"
    with replaced_whole(path) as temporary:
        temporary.write_bytes(b"content")
        assert not path.exists()
        assert temporary.suffix == ".pt2"
        assert is_temporary(temporary.name)
    assert path.read_bytes() == b"content"
    assert os.listdir(path.parent) == ["model.pt2"]


def test_an_error_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"old")

    def half_written() -> None:
        with replaced_whole(path) as temporary:
            temporary.write_bytes(b"ne")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        half_written()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("name", ["model.pt2", ".model.tmp", "plan.json", f"{'a' * 32}.tmp"])
def test_other_names_are_not_temporary(name: str) -> None:
    assert not is_temporary(name)
