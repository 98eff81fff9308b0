"""Images that come without a split: one in five of each class is held out, wherever they are listed."""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_trees import opened
from PIL import Image

from cleanai_ray.config.study import Study, parse_study
from cleanai_ray.data.held_out import held_out
from cleanai_ray.data.image_index import ImageIndex
from cleanai_ray.errors import DataError
from cleanai_ray.nn.notices import collected_notices
from cleanai_ray.stages.fingerprints import data_key
from cleanai_ray.storage.split_folders import held_out_rule


def index_of(**counts: int) -> ImageIndex:
    return ImageIndex.of_classes(
        [f"all/{name}/{place}.png" for place in range(count)] for name, count in counts.items()
    )


def held(names: list[str]) -> set[str]:
    """The names in a folder `all` that are held out."""
    index = ImageIndex.of_classes([[f"all/{name}" for name in names]])
    return {index.name(place).removeprefix("all/") for place in np.flatnonzero(held_out(index))}


def test_the_images_whose_checksum_is_a_multiple_of_five() -> None:
    names = [f"cat/{number}.png" for number in range(1000)]
    assert held(names) == {name for name in names if zlib.crc32(name.encode()) % 5 == 0}
    assert 160 < len(held(names)) < 240  # 200 of 1000, standard deviation 13
    assert held(["cat/0.png"]) == set()  # it is a multiple, but nothing would be left


@pytest.mark.parametrize("remainder", [True, False])
def test_of_two_images_or_more_one_is_held_out_and_one_is_not(remainder: bool) -> None:
    """Classes in which every checksum is a multiple of five, or none."""
    sums = {name: zlib.crc32(name.encode()) for name in (f"cat/{number}.png" for number in range(40))}
    names = sorted((name for name in sums if bool(sums[name] % 5) == remainder), key=sums.__getitem__)[:4]
    assert held(names) == (set(names[:1]) if remainder else set(names[:-1]))


@settings(max_examples=50, deadline=None)
@given(st.sets(st.integers(0, 500), min_size=1), st.sets(st.integers(0, 500)))
def test_new_images_move_none_of_the_old_ones(old: set[int], new: set[int]) -> None:
    names, more = ([f"cat/{number}.png" for number in sorted(each)] for each in (old, old | new))
    multiples = [name for name in names if zlib.crc32(name.encode()) % 5 == 0]
    if 0 < len(multiples) < len(names):
        assert held(names) == held(more) & set(names)


def test_the_choice_depends_on_the_names_in_the_class_alone() -> None:
    index = index_of(ant=7, bee=9)
    names = [name.as_py().decode() for name in index.names]
    other = ImageIndex.of_classes(
        [name.replace("all/", "elsewhere/") for name in reversed(names) if f"/{label}/" in name]
        for label in ("ant", "bee")
    )
    assert np.array_equal(held_out(index), held_out(other))  # the index sorts the names of a class


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Two classes of ten images and of six, and nothing else."""
    for label, count in (("cat", 10), ("dog", 6)):
        (tmp_path / "pets" / label).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / "pets" / label / f"{number}.png")
    return tmp_path / "pets"


@pytest.mark.parametrize("layout", ["classes alone", "train alone"])
def test_a_folder_without_a_split_gets_one(flat: Path, layout: str) -> None:
    root = flat
    if layout == "train alone":
        root = flat.parent / "new"
        shutil.copytree(flat, root / "train")
    with collected_notices() as said:
        source = opened("image_folder", root=str(root), num_classes=2)
    assert (source.splits, source.class_names) == (("train", "val"), ("cat", "dog"))
    # Multiples of five: the checksums of cat/0.png, cat/6.png and dog/2.png.
    assert (source.num_samples("train"), source.num_samples("val")) == (8 + 5, 2 + 1)
    held_files = [Path(source.describe("val", place)) for place in range(3)]
    assert ["/".join(file.parts[-2:]) for file in held_files] == ["cat/0.png", "cat/6.png", "dog/2.png"]
    files = [source.describe(split, place) for split in ("train", "val") for place in range(source.num_samples(split))]
    assert len({tuple(Path(file).parts[-2:]) for file in files}) == 16
    assert [source.dataset("val")[place][1] for place in range(3)] == [0, 0, 1]
    assert source.resolve("test") == "val"
    (sentence,) = said
    assert "about one image in 5" in sentence


@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_a_class_may_be_called_as_a_split(flat: Path, name: str) -> None:
    (flat / "dog").rename(flat / name)
    source = opened("image_folder", root=str(flat), num_classes=2)
    assert (source.class_names, source.splits) == (("cat", name), ("train", "val"))
    assert source.num_samples("train") + source.num_samples("val") == 16


def study_of(root: Path) -> Study:
    content = {
        "model": {"name": "resnet20", "num_classes": 2, "input_shape": [3, 8, 8]},
        "data": {"name": "image_folder", "root": str(root)},
        "sweep": {"methods": ["magnitude"], "ratios": [0.3]},
    }
    return parse_study(content)


def test_what_was_measured_on_all_images_is_not_taken_for_what_is_left(flat: Path) -> None:
    """A split `train` of which some are held out is another one under the same root."""
    root = flat.parent / "new"
    shutil.copytree(flat, root / "train")
    alone, place = data_key(study_of(root)), opened("image_folder", root=str(root), num_classes=2).location
    shutil.copytree(flat, root / "val")
    assert data_key(study_of(root)) != alone
    assert opened("image_folder", root=str(root), num_classes=2).location == place[:-1]
    assert place[-1] == "held_out=crc32/5"


def test_folders_with_a_split_keep_their_digests(tmp_path: Path) -> None:
    for folders in (("train", "val"), ("train", "test"), ("images", "meta"), ("food-101/meta",)):
        root = tmp_path / folders[0].replace("/", "-") / folders[-1].replace("/", "-")
        for folder in folders:
            (root / folder).mkdir(parents=True)
        assert held_out_rule(str(root)) is None
    assert held_out_rule(str(tmp_path / "absent")) is held_out_rule(None) is None
    assert held_out_rule(f"file://{tmp_path}") == "crc32/5"  # folders of classes alone


def test_folders_without_images_are_still_refused(flat: Path) -> None:
    (flat / "notes").mkdir()
    for root in (flat, flat / "cat"):
        with pytest.raises(DataError, match="holds no splits with classes"):
            opened("image_folder", root=str(root), num_classes=2)
