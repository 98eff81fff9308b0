"""A shard of the calibration reads the row groups of its own samples, once, and no others: by counting bytes."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_trees import write_hub_parquet
from PIL import Image
from pyarrow import fs

from cleanai_ray.config.study import parse_study
from cleanai_ray.stages.shard_measures import shards_of
from cleanai_ray.stages.workspace import open_workspace

ROWS = 8
"""Rows of a row group; of noise images, so that one is larger than what is read of a file's end to find its footer."""


class CountingFile(io.FileIO):
    """A file that notes which bytes were read of it."""

    def __init__(self, path: str, log: list[tuple[str, int, int]]) -> None:
        super().__init__(path)
        self._log = log

    def read(self, size: int = -1) -> bytes:
        start, content = self.tell(), super().read(size)
        self._log.append((str(self.name), start, start + len(content)))
        return content


class CountingHandler(fs.FileSystemHandler):
    """Opens files of this machine to read them at any place: all that a data set does after it was opened."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int, int]] = []

    def open_input_file(self, path):
        return pa.PythonFile(CountingFile(path, self.log), mode="r")

    def _unexpected(self, *arguments):
        raise AssertionError(f"a data set does more than read: {arguments}")

    get_type_name = normalize_path = get_file_info = get_file_info_selector = create_dir = _unexpected
    delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = move = copy_file = _unexpected
    open_input_stream = open_output_stream = open_append_stream = _unexpected


def noise(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


@pytest.fixture
def workspace(tmp_path: Path):
    """Two training files of 6 row groups of 8 images; 40 of the 96 images are calibrated on, in shards of 8."""
    for number in range(2):
        rows = [noise(48 * number + row) for row in range(48)]
        write_hub_parquet(tmp_path / f"train-{number}.parquet", rows, [0, 1] * 24, row_group_size=ROWS)
    write_hub_parquet(tmp_path / "test.parquet", [noise(99)], [0], row_group_size=ROWS)
    calibration = {"samples": 40, "shard_size": 8, "withhold_from_training": False}
    study = parse_study(
        {
            "model": {"name": "resnet18", "num_classes": 2, "input_shape": [3, 32, 32]},
            "data": {"name": "parquet_images", "root": str(tmp_path), "batch_size": 3, "calibration": calibration},
            "sweep": {"methods": ["magnitude"], "ratios": [0.3]},
        }
    )
    return open_workspace(study.model_dump_json(), "cpu")


def row_groups(folder: Path) -> list[tuple[str, int, int]]:
    """File, first byte and end of every row group of the training split."""
    found = []
    for path in sorted(map(str, folder.glob("train-*.parquet"))):
        metadata = pq.ParquetFile(path).metadata
        for number in range(metadata.num_row_groups):
            chunks = [metadata.row_group(number).column(place) for place in range(metadata.num_columns)]
            starts = [chunk.dictionary_page_offset or chunk.data_page_offset for chunk in chunks]
            ends = [start + chunk.total_compressed_size for start, chunk in zip(starts, chunks, strict=True)]
            found.append((path, min(starts), max(ends)))
    return found


@pytest.mark.parametrize("kind", ["statistics", "moments"])
def test_a_shard_reads_its_own_row_groups_once(workspace, tmp_path, kind):
    groups = row_groups(tmp_path)
    assert len(groups) == 12
    ends = {path: max(end for file, _, end in groups if file == path) for path, _, _ in groups}
    shards = [shard.positions for shard in shards_of(workspace, kind)]
    drawn = workspace.roles.calibration
    reads = 0
    for positions in shards:
        handler = CountingHandler()
        workspace.source.opened("train")._cache.clear()  # as in a process that reads this shard alone
        workspace.source._files._opened = os.getpid(), fs.PyFileSystem(handler)
        count = sum(len(labels) for _, labels in workspace.batches("calibration", positions=positions))
        assert count == len(positions)
        data = [(path, start, end) for path, start, end in handler.log if end <= ends[path]]  # the rest: footers
        touched = {
            number
            for number, (file, first, last) in enumerate(groups)
            if any(path == file and start < last and end > first for path, start, end in data)
        }
        assert touched == {int(index) // ROWS for index in drawn[positions]}
        size = sum(last - first for number, (_, first, last) in enumerate(groups) if number in touched)
        assert sum(end - start for _, start, end in data) <= size
        reads += len(touched)
    assert reads <= len(groups) + len(shards) - 1  # neighbours share a row group at the most
    whole = np.sort(np.concatenate(shards))
    expected = np.arange(40) if kind == "statistics" else whole
    assert np.array_equal(whole, expected)
    assert len(np.unique(whole)) == len(whole) == (40 if kind == "statistics" else 32)
