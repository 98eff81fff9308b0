"""The index of image_folder: kept, used, and noticed to be out of date."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from image_trees import opened

from cleanai_ray.data.filesystems import ProcessFilesystem
from cleanai_ray.data.image_folder import FileDataset
from cleanai_ray.data.image_index import ImageIndex
from cleanai_ray.data.transforms import Preprocessing
from cleanai_ray.errors import DataError

AN_HOUR_AGO = 1_700_000_000


def age(root: Path, time: int = AN_HOUR_AGO) -> None:
    """Set every folder's time back, as if nothing had changed for long."""
    for folder, _, _ in os.walk(root):
        os.utime(folder, (time, time))


@pytest.fixture
def root(imagenet_root) -> Path:
    age(imagenet_root)
    return imagenet_root


def paths(root: Path, split: str = "train", **options) -> list[str]:
    source = opened("image_folder", root=str(root), num_classes=3, options=options)
    return [source.describe(split, index) for index in range(source.num_samples(split))]


def listed(root: Path, split: str = "train") -> list[str]:
    """What a plain walk finds: sorted by class, and then as paths."""
    return [
        str(path) for name in sorted(os.listdir(root / split)) for path in sorted((root / split / name).rglob("*.*"))
    ]


def test_an_index_is_kept_and_used_and_can_miss_what_leaves_no_trace(root, index_cache):
    assert paths(root) == listed(root)
    assert len(list(index_cache.iterdir())) == 1
    assert paths(root, "val") == listed(root, "val")
    assert len(list(index_cache.iterdir())) == 2
    kept = listed(root)
    Path(kept[3]).unlink()
    age(root)  # the documented blind spot, which shows that nothing was walked again
    assert paths(root) == kept
    assert paths(root, index_cache=False) == listed(root)


@pytest.mark.parametrize("change", ["file added", "file removed", "file renamed", "folder added", "in a sub-folder"])
def test_a_change_in_a_class_folder_is_noticed(root, change):
    folder = root / "train" / "n01443537"
    (folder / "more").mkdir()
    shutil.copy(next(folder.glob("*.JPEG")), folder / "more" / "b.JPEG")
    age(root)
    before = paths(root)
    first = next(folder.glob("*.JPEG"))
    if change == "file removed":
        first.unlink()
    elif change == "file renamed":
        first.rename(folder / "renamed.JPEG")
    else:
        target = {"file added": folder, "folder added": folder / "new", "in a sub-folder": folder / "more"}[change]
        target.mkdir(exist_ok=True)
        shutil.copy(first, target / "added.JPEG")
    assert paths(root) == listed(root) != before


def test_a_class_that_is_added_moves_the_numbers_of_the_others(root):
    source = opened("image_folder", root=str(root), num_classes=3)
    assert source.dataset("val")[0][1] == 0
    for split in ("train", "val"):
        shutil.copytree(root / split / "n01440764", root / split / "n00000000")
    shutil.rmtree(root / "val" / "n00000000")
    age(root)
    again = opened("image_folder", root=str(root), num_classes=4)
    assert again.dataset("val")[0][1] == 1


@pytest.mark.parametrize("content", [b"", b"PAR1 but not really PAR1"])
def test_a_damaged_index_is_made_again(root, index_cache, content):
    expected = paths(root)
    (file,) = index_cache.iterdir()
    whole = file.stat().st_size
    file.write_bytes(content)
    assert paths(root) == expected
    assert file.stat().st_size == whole


def test_a_cache_that_cannot_be_written_is_done_without(root, tmp_path_factory):
    blocked = tmp_path_factory.mktemp("blocked") / "file"
    blocked.write_text("a file is no folder")
    assert paths(root, index_cache=str(blocked)) == paths(root, index_cache=str(blocked / "below")) == listed(root)
    assert blocked.read_text() == "a file is no folder"


def test_a_folder_that_has_just_changed_is_not_trusted(imagenet_root, index_cache):
    age(imagenet_root)
    (imagenet_root / "train" / "n01440764" / "late.JPEG").write_bytes(b"")
    assert len(paths(imagenet_root)) == 16
    assert list(index_cache.iterdir()) == []


def test_the_cache_can_be_named_in_the_study(root, tmp_path_factory, index_cache):
    folder = tmp_path_factory.mktemp("named")
    paths(root, index_cache=str(folder))
    assert (len(list(folder.iterdir())), list(index_cache.iterdir())) == (1, [])
    with pytest.raises(DataError, match=r"data.options.index_cache is 3; allowed: a folder, or false"):
        paths(root, index_cache=3)


def test_names_that_are_no_text_and_nested_names_are_kept_in_order(root):
    folder = root / "train" / "n02102040"
    for name in ("a.x.JPEG", "a/b.JPEG", "B.JPEG", "a-.JPEG", os.fsdecode(b"\xff\xfe.JPEG"), "\u00e9.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    expected = sorted(str(path) for path in folder.rglob("*.*") if path.suffix != ".txt")
    age(root)
    for _ in range(2):
        found = [path for path in paths(root) if "n02102040" in path]
        assert sorted(found) == expected
        assert found.index(f"{folder}/a/b.JPEG") < found.index(f"{folder}/a.x.JPEG")


def test_a_million_names_travel_as_two_buffers():
    index = ImageIndex.of_classes(
        [f"train/{label:04}/{image:08}.JPEG" for image in range(1000)] for label in range(100)
    )
    steps = Preprocessing(resize=8, crop=(8, 8))
    dataset = FileDataset(ProcessFilesystem("."), "root", "", index, preprocessing=steps, augment=False)
    size = len("train/0000/00000000.JPEG") + 4 + 4  # the name, its offset and its label
    assert len(pickle.dumps(dataset)) < size * len(index) + 10_000
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.where(54_321) == "root/train/0054/00000321.JPEG"
    assert np.array_equal(copy._index.labels, np.repeat(np.arange(100), 1000))
