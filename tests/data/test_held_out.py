"""Images that come without a split: one in five of each class is held out, wherever they are listed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from image_trees import opened
from PIL import Image

from cleanai_ray.data.held_out import held_out
from cleanai_ray.data.image_index import ImageIndex
from cleanai_ray.errors import DataError
from cleanai_ray.nn.notices import collected_notices


def index_of(**counts: int) -> ImageIndex:
    return ImageIndex.of_classes(
        [f"all/{name}/{place}.png" for place in range(count)] for name, count in counts.items()
    )


@pytest.mark.parametrize(("count", "held"), [(0, 0), (1, 0), (2, 1), (5, 1), (6, 2), (10, 2), (11, 3)])
def test_a_fifth_of_each_class_rounded_up_and_never_all(count: int, held: int) -> None:
    index = index_of(cat=count, dog=20)
    chosen = held_out(index)
    assert [int(chosen[index.labels == label].sum()) for label in (0, 1)] == [held, 4]


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
    assert (source.num_samples("train"), source.num_samples("val")) == (8 + 4, 2 + 2)
    files = [source.describe(split, place) for split in ("train", "val") for place in range(source.num_samples(split))]
    assert len({tuple(Path(file).parts[-2:]) for file in files}) == 16
    assert [source.dataset("val")[place][1] for place in range(4)] == [0, 0, 1, 1]
    assert source.resolve("test") == "val"
    (sentence,) = said
    assert "one image in 5" in sentence


def test_folders_without_images_are_still_refused(flat: Path) -> None:
    (flat / "notes").mkdir()
    for root in (flat, flat / "cat"):
        with pytest.raises(DataError, match="holds no splits with classes"):
            opened("image_folder", root=str(root), num_classes=2)
