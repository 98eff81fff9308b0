"""Data sets of images with any number of labels each: a table of files, and lists in Parquet files."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from cleanai_ray.config.sections import DataSection, ModelSection
from cleanai_ray.data import BatchOptions, batches, open_image_source
from cleanai_ray.data.source import ImageSource
from cleanai_ray.errors import DataError

TASK = "multilabel_classification"
SIDE = 8


def opened(name: str, root: Path, classes: int, task: str = TASK, **options: Any) -> ImageSource:
    transform = {"resize": SIDE, "mean": [0.0] * 3, "std": [1.0] * 3}
    data = DataSection.model_validate({"name": name, "root": str(root), "options": options, "transform": transform})
    model = {"factory": "a:b", "num_classes": classes, "input_shape": [3, SIDE, SIDE]}
    return open_image_source(data, ModelSection.model_validate(model), task)


def grey(level: int) -> bytes:
    written = io.BytesIO()
    Image.fromarray(np.full((SIDE, SIDE, 3), level, np.uint8)).save(written, "PNG")
    return written.getvalue()


def write_images(folder: Path, levels: list[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, level in enumerate(levels):
        (folder / f"{number}.png").write_bytes(grey(level))


def marks(source: ImageSource, split: str) -> tuple[list[float], list[list[float]]]:
    """The grey level of each image, from 0 to 255, and its marks."""
    ((images, targets),) = batches(source.dataset(split), np.arange(source.num_samples(split)), 8)
    assert targets.dtype == torch.float32
    return (255 * images[:, 0, 0, 0]).round().tolist(), targets.tolist()


class TestTables:
    def test_names_of_labels_in_one_column(self, tmp_path: Path) -> None:
        write_images(tmp_path / "train", [10, 20, 30])
        write_images(tmp_path, [40])  # no folder val/: files are beside val.csv
        (tmp_path / "train.csv").write_text("image,labels\n2.png,dog; cat\n0.png,\n1.png,cat|bird\n")
        (tmp_path / "val.csv").write_text("image,labels\n0.png,bird\n")
        source = opened("image_labels", tmp_path, 3)
        assert source.class_names == ("bird", "cat", "dog")
        assert marks(source, "train") == ([30, 10, 20], [[0, 1, 1], [0, 0, 0], [1, 1, 0]])
        assert marks(source, "val") == ([40], [[1, 0, 0]])
        assert source.describe("train", 0) == str(tmp_path / "train" / "2.png")

    def test_a_column_for_each_class(self, tmp_path: Path) -> None:
        write_images(tmp_path / "train", [10, 20])
        (tmp_path / "train.csv").write_text("dog,file,cat\n1,1.png,0\n0,0.png,1\n")
        source = opened("image_labels", tmp_path, 2, image_column="file")
        assert source.class_names == ("dog", "cat")
        assert marks(source, "train") == ([20, 10], [[1, 0], [0, 1]])

    def test_images_are_read_by_other_processes_and_augmented(self, tmp_path: Path) -> None:
        write_images(tmp_path / "train", [10, 20, 30])
        (tmp_path / "train.csv").write_text("image,labels\n0.png,a\n1.png,b\n2.png,a;b\n")
        source = opened("image_labels", tmp_path, 2)
        options = BatchOptions(num_workers=1, shuffle_seed=3)
        ((images, targets),) = batches(source.dataset("train", augment=True), np.arange(3), 3, options)
        expected = {10: [1, 0], 20: [0, 1], 30: [1, 1]}
        levels = (255 * images[:, 0, 0, 0]).round().int().tolist()
        assert dict(zip(levels, targets.int().tolist(), strict=True)) == expected

    @pytest.mark.parametrize(
        ("train", "val", "message"),
        [
            ("name,labels\n0.png,a\n", "", "train.csv' has no column 'image'"),
            ("image,labels\n0.png,\n", "", "train.csv' names no class"),
            ("image,labels\n0.png,a\n", "image,labels\n0.png,b\n", "val.csv' has label 'b', .* allowed: a"),
            ("image,a\n0.png,2\n", "", r"column 'a' of .*train.csv' holds 2; allowed: 0 and 1"),
            ("image,a\n0.png,1\n", "image,b\n0.png,1\n", "val.csv' has no column 'a'"),
        ],
    )
    def test_what_is_wrong_is_named(self, train: str, val: str, message: str, tmp_path: Path) -> None:
        (tmp_path / "train.csv").write_text(train)
        if val:
            (tmp_path / "val.csv").write_text(val)
        with pytest.raises(DataError, match=message):
            opened("image_labels", tmp_path, 1).dataset("val" if val else "train")

    def test_another_task_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"data.name is 'image_labels'; allowed for task classification: "):
            opened("image_labels", tmp_path, 1, task="classification")


def write_parquet(path: Path, levels: list[int], labels: list[Any], names: list[str] | None = None) -> None:
    table = pa.table({"image": [{"bytes": grey(level)} for level in levels], "labels": labels})
    if names is not None:
        features = {"labels": {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "Sequence"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=2)


class TestParquet:
    def test_lists_of_numbers_with_the_names_that_datasets_writes(self, tmp_path: Path) -> None:
        names = ["cat", "dog", "bird"]
        write_parquet(tmp_path / "train-0.parquet", [10, 20, 30], [[2, 0], [], [1]], names)
        write_parquet(tmp_path / "test-0.parquet", [40], [[0]], names)
        source = opened("parquet_labels", tmp_path, 3)
        assert source.class_names == tuple(names)
        assert marks(source, "train") == ([10, 20, 30], [[1, 0, 1], [0, 0, 0], [0, 1, 0]])
        assert marks(source, "test") == ([40], [[1, 0, 0]])
        assert source.describe("train", 2) == f"{tmp_path / 'train-0.parquet'} row 2"

    def test_lists_of_names_and_of_bare_numbers(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "train-0.parquet", [10, 20], [["dog", "cat"], ["dog"]])
        source = opened("parquet_labels", tmp_path, 2)
        assert source.class_names == ("cat", "dog")
        assert marks(source, "train")[1] == [[1, 1], [0, 1]]
        write_parquet(tmp_path / "train-0.parquet", [10, 20, 30], [["dog", None], None, [None, "cat"]])
        source = opened("parquet_labels", tmp_path, 2)
        assert source.class_names == ("cat", "dog")
        assert marks(source, "train")[1] == [[0, 1], [0, 0], [1, 0]]  # nulls are left out
        write_parquet(tmp_path / "train-0.parquet", [10, 20], [[3], [0, 1]])
        assert marks(opened("parquet_labels", tmp_path, 4), "train")[1] == [[0, 0, 0, 1], [1, 1, 0, 0]]

    def test_what_is_wrong_is_named(self, tmp_path: Path) -> None:
        write_parquet(tmp_path / "train-0.parquet", [10], [3])
        with pytest.raises(DataError, match=r"column 'labels' of .* holds int64; expected lists of labels"):
            opened("parquet_labels", tmp_path, 4)
        empty = {
            "image": pa.array([], pa.struct([("bytes", pa.binary())])),
            "labels": pa.array([], pa.list_(pa.string())),
        }
        pq.write_table(pa.table(empty), tmp_path / "train-0.parquet")
        with pytest.raises(DataError, match=r"split 'train' of data.root '.*' holds no images"):
            opened("parquet_labels", tmp_path, 1)
        write_parquet(tmp_path / "val-0.parquet", [10], [["a"]])
        (tmp_path / "train-0.parquet").rename(tmp_path / "test-0.parquet")
        with pytest.raises(DataError, match=r"split 'test' of data.root '.*' holds no images"):
            opened("parquet_labels", tmp_path, 1).dataset("test")
        (tmp_path / "test-0.parquet").unlink()
        write_parquet(tmp_path / "train-0.parquet", [10], [[5]], ["a", "b"])
        with pytest.raises(DataError, match=r"row 0 of split 'train' .* has label 5; allowed: 0 to 1, or a, b"):
            opened("parquet_labels", tmp_path, 2).dataset("train")
