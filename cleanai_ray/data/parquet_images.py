"""Encoded images in Parquet files, as data hubs publish them, on any filesystem that pyarrow opens."""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from cleanai_ray.config.sections import DataSection
from cleanai_ray.data.encoded import EncodedDataset, EncodedSource
from cleanai_ray.data.filesystems import ProcessFilesystem
from cleanai_ray.data.pixels import stamp_of
from cleanai_ray.data.source import Shape
from cleanai_ray.data.transforms import Preprocessing
from cleanai_ray.errors import ArtifactError, DataError, SampleError
from cleanai_ray.registry import DATASETS
from cleanai_ray.storage.run_directory import resolve_filesystem

_SPLIT = re.compile(r"^(train|val|validation|test)(?=[-._]|$)")
_EXPECTED = (
    "a folder or URL with train-*.parquet and test-*.parquet or validation-*.parquet, or sub-folders of those names"
)
_NUM_CACHED_ROW_GROUPS = 8


@dataclass(frozen=True)
class Columns:
    """Names of the two columns that are read."""

    image: str
    label: str


@dataclass(frozen=True)
class RowGroup:
    """A row group: the unit that is read at once."""

    file: str
    number: int
    num_rows: int
    version: str = ""


class ParquetDataset(EncodedDataset):
    """Row groups, read one at a time as their samples are needed; the last few stay in memory.

    Args:
        filesystem: Where the files are stored.
        groups: The row groups of the split, in order.
        columns: The columns to read.
        num_classes: Labels must be below this.
        preprocessing: Applied to each image.
        augment: Apply the training transform.
    """

    def __init__(
        self,
        filesystem: ProcessFilesystem,
        groups: Sequence[RowGroup],
        columns: Columns,
        *,
        num_classes: int,
        preprocessing: Preprocessing,
        augment: bool,
    ) -> None:
        super().__init__(preprocessing, augment=augment)
        self._filesystem = filesystem
        self._groups = groups
        self._columns = columns
        self._num_classes = num_classes
        self.preparation += f" {columns}"
        self._ends = np.cumsum([group.num_rows for group in groups])
        self._first_rows = _first_rows(groups)
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": OrderedDict()}

    @property
    def multiprocessing_context(self) -> str | None:
        """Start method that worker processes need."""
        return self._filesystem.multiprocessing_context

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def where(self, index: int) -> str:
        """Return the file and row of a sample."""
        group, row = self._locate(index)
        return f"{self._groups[group].file} row {self._first_rows[group] + row}"

    def shuffled(self, indices: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Return indices in a random order that uses few row groups at a time.

        Row groups are taken in random order, as many at a time as the cache holds, and samples in random order among
        those.
        """
        group_of = np.searchsorted(self._ends, indices, side="right")
        rank = generator.permutation(len(self._groups))[group_of] // _NUM_CACHED_ROW_GROUPS
        return indices[np.lexsort((generator.random(len(indices)), rank))]

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        group = int(np.searchsorted(self._ends, index, side="right"))
        return group, int(index - self._ends[group] + self._groups[group].num_rows)

    def _table(self, number: int) -> pa.Table:
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        group = self._groups[number]
        try:
            with self._filesystem.get().open_input_file(group.file) as stream:
                columns = [self._columns.image, self._columns.label]
                table = pq.ParquetFile(stream).read_row_group(group.number, columns=columns, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"row group {group.number} of '{group.file}' cannot be read: {error}") from error
        self._cache[number] = table
        if len(self._cache) > _NUM_CACHED_ROW_GROUPS:
            self._cache.popitem(last=False)
        return table

    def stamps(self, indices: np.ndarray) -> np.ndarray:
        """Return a digest of each sample's row and of its file's path, size and time, uint64 [N]."""
        places = [(self.where(int(index)), self._groups[self._locate(int(index))[0]].version) for index in indices]
        return np.array([stamp_of(*place) for place in places], np.uint64)

    def encoded(self, index: int) -> tuple[bytes, int]:
        """Return the bytes of an image and its class, from the row group that holds them."""
        number, row = self._locate(int(index))
        table = self._table(number)
        value = table.column(self._columns.image)[row].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise SampleError(
                f"holds no image bytes in column '{self._columns.image}'; "
                "expected encoded images, plain or as a struct with 'bytes'",
                self.where(index),
            )
        return content, self.class_of(table.column(self._columns.label)[row].as_py(), index)

    def class_of(self, label: Any, index: int) -> int:
        """Return the class of a sample, from what its column of labels holds.

        Raises:
            DataError: When it is none.
        """
        if not isinstance(label, int) or not 0 <= label < self._num_classes:
            raise DataError(f"sample '{self.where(index)}' has label {label}; allowed: 0 to {self._num_classes - 1}")
        return label


def _first_rows(groups: Sequence[RowGroup]) -> list[int]:
    """Return the row of its file that each row group begins with."""
    ends: dict[str, int] = {}
    first = []
    for group in groups:
        first.append(ends.get(group.file, 0))
        ends[group.file] = first[-1] + group.num_rows
    return first


@DATASETS.register("parquet_images")
class ParquetImages(EncodedSource):
    """Encoded images in Parquet files in a folder or object store, laid out as data hubs publish them."""

    option_names = ("image_column", "label_column")

    def __init__(self, data: DataSection, input_shape: Shape) -> None:
        super().__init__(data, input_shape)
        if data.root is None:
            raise DataError(f"data.root is null; expected {_EXPECTED}")
        self._location = data.root
        self._files = ProcessFilesystem(data.root)
        options = {"image_column": "image", "label_column": "label", **data.options}
        self._versions: dict[str, str] = {}
        self._columns = Columns(str(options["image_column"]), str(options["label_column"]))
        try:
            self._filesystem, self._root = resolve_filesystem(data.root)
            files = self._find_files()
        except (ArtifactError, OSError) as error:
            raise DataError(f"data.root '{data.root}' cannot be opened: {error}; expected {_EXPECTED}") from error
        self.splits = tuple(split for split in ("train", "val", "validation", "test") if files.get(split))
        if not self.splits:
            raise DataError(f"data.root '{data.root}' holds no Parquet files of a split; expected {_EXPECTED}")
        self._groups: dict[str, list[RowGroup]] = {}
        for split in self.splits:
            self._groups[split] = [group for file in files[split] for group in self._row_groups(file)]
        self.class_names = self._read_class_names(files)
        self.num_classes = len(self.class_names)

    def _find_files(self) -> dict[str, list[str]]:
        if self._filesystem.get_file_info(self._root).type != fs.FileType.Directory:
            raise DataError(f"data.root '{self._location}' does not exist or is not a folder; expected {_EXPECTED}")
        files: dict[str, list[str]] = {}
        for info in self._filesystem.get_file_info(fs.FileSelector(self._root, recursive=True)):
            if info.type != fs.FileType.File or info.extension != "parquet":
                continue
            *folders, name = info.path.removeprefix(self._root).strip("/").split("/")
            matches = [match for part in (name, *reversed(folders)) if (match := _SPLIT.match(part))]
            if matches:
                files.setdefault(matches[0].group(1), []).append(info.path)
                self._versions[info.path] = f"{info.size} {info.mtime_ns}"
        return {split: sorted(paths) for split, paths in files.items()}

    def _open(self, file: str) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self._filesystem.open_input_file(file))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"'{file}' is not a readable Parquet file: {error}") from error

    def _row_groups(self, file: str) -> list[RowGroup]:
        with self._open(file) as parquet:
            available = parquet.schema_arrow.names
            for option, column in (("image_column", self._columns.image), ("label_column", self._columns.label)):
                if column not in available:
                    raise DataError(
                        f"data.options.{option} is '{column}', which '{file}' lacks; allowed: {', '.join(available)}"
                    )
            metadata = parquet.metadata
            rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            version = self._versions[file]
            return [RowGroup(file, number, num_rows, version) for number, num_rows in enumerate(rows)]

    def _read_class_names(self, files: dict[str, list[str]]) -> tuple[str, ...]:
        with self._open(files[self.splits[0]][0]) as parquet:
            names = _names_in_schema(parquet.schema_arrow, self._columns.label)
        if names:
            return names
        highest = max(self._highest_label(file) for split in self.splits for file in files[split])
        return tuple(str(label) for label in range(highest + 1))

    def _highest_label(self, file: str) -> int:
        with self._open(file) as parquet:
            column = parquet.read(columns=[self._columns.label]).column(0)
        if not pa.types.is_integer(column.type):
            raise DataError(f"column '{self._columns.label}' of '{file}' holds {column.type}; expected integer labels")
        highest = pc.max(column).as_py()
        return -1 if highest is None else highest

    def num_samples(self, split: str) -> int:
        """Return the number of images of a split, from the files' metadata."""
        return sum(group.num_rows for group in self._groups[self.resolve(split)])

    def classes(self, split: str) -> np.ndarray | None:
        """Return the class of each image of a split, from the column of labels alone."""
        parts = []
        for file in dict.fromkeys(group.file for group in self._groups[self.resolve(split)]):
            with self._open(file) as parquet:
                column = parquet.read(columns=[self._columns.label]).column(0)
            if not pa.types.is_integer(column.type):
                return None
            parts.append(pc.fill_null(column.cast(pa.int64()), -1).to_numpy())
        return np.concatenate(parts)

    def dataset(self, split: str, *, augment: bool = False) -> ParquetDataset:
        """Return a split."""
        return self._images(ParquetDataset, split, augment=augment)

    def _images(self, kind: type[ParquetDataset], split: str, *, augment: bool = False) -> ParquetDataset:
        return kind(
            self._files,
            self._groups[self.resolve(split)],
            self._columns,
            num_classes=self.num_classes,
            preprocessing=self.preprocessing,
            augment=augment,
        )

    def reading_order(self, split: str, indices: np.ndarray) -> np.ndarray:
        """Return the places of indices in the order in which the files hold their samples."""
        return np.argsort(indices, kind="stable")


def _names_in_schema(schema: pa.Schema, label_column: str) -> tuple[str, ...]:
    try:
        hub = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(str(name) for name in hub["info"]["features"][label_column]["names"])
    except (KeyError, TypeError, ValueError):
        return ()
