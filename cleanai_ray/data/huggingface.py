"""Data sets of Hugging Face's hub, or in folders, through the library `datasets`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cleanai_ray.config.sections import DataSection
from cleanai_ray.data.encoded import EncodedDataset, EncodedSource
from cleanai_ray.data.huggingface_library import class_names, find_columns, load_splits, one_line, rows_of
from cleanai_ray.data.pixels import stamp_of, version_of
from cleanai_ray.data.source import Shape
from cleanai_ray.data.transforms import Preprocessing
from cleanai_ray.errors import DataError, SampleError
from cleanai_ray.registry import DATASETS


class HuggingFaceDataset(EncodedDataset):
    """A split, whose rows are mapped from Arrow files into memory and read one at a time.

    Args:
        rows: The split, a `datasets.Dataset` of the two columns.
        name: The name of data set and split in messages.
        columns: Names of the columns of images and of labels.
        num_classes: Labels must be below this.
        preprocessing: Applied to each image.
        augment: Apply the training transform.
    """

    def __init__(
        self,
        rows: Any,
        name: str,
        columns: tuple[str, str],
        *,
        num_classes: int,
        preprocessing: Preprocessing,
        augment: bool,
    ) -> None:
        super().__init__(preprocessing, augment=augment)
        self._rows = rows
        self._name = name
        self._image, self._label = columns
        self._num_classes = num_classes

    def __len__(self) -> int:
        return len(self._rows)

    def where(self, index: int) -> str:
        """Return the path of a sample's file, or the name of its split and its row there."""
        return self._place(self._row(index), index)

    def stamps(self, indices: np.ndarray) -> np.ndarray:
        """Return a digest of each sample's row, its file and the library's fingerprint of the split, uint64 [N]."""
        stamps = [stamp_of(self._rows._fingerprint, index, *self._version(int(index))) for index in indices]
        return np.array(stamps, np.uint64)

    def _version(self, index: int) -> tuple[object, ...]:
        if not self._names_files:
            return ()  # bytes are in the library's own files, which its fingerprint is of
        file = _file_of(self._row(index)[self._image])
        return () if file is None else version_of(file)

    @cached_property
    def _names_files(self) -> bool:
        return len(self) > 0 and _file_of(self._row(0)[self._image]) is not None

    def encoded(self, index: int) -> tuple[bytes | Path, int]:
        """Return the bytes of an image, or the path of its file, and its class."""
        row = self._row(index)
        label, file = row[self._label], _file_of(row[self._image])
        content = file or (row[self._image] or {}).get("bytes")
        if content is None:
            raise SampleError(f"holds no image in column '{self._image}'", self._place(row, index))
        if not isinstance(label, int) or not 0 <= label < self._num_classes:
            place = self._place(row, index)
            raise DataError(f"sample '{place}' has label {label}; allowed: 0 to {self._num_classes - 1}")
        return content, label

    def _row(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        try:
            return self._rows[int(index)]
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"row {index} of {self._name} cannot be read: {one_line(error)}") from error

    def _place(self, row: Mapping[str, Any], index: int) -> str:
        return str(_file_of(row[self._image]) or f"{self._name} row {index}")


def _file_of(image: Mapping[str, Any] | None) -> Path | None:
    """Return the file of an image that is stored by its path; beside bytes, a path is but the name it once had."""
    image = image or {}
    named = image.get("bytes") is None and image.get("path")
    return Path(named) if named and Path(named).is_absolute() else None


@DATASETS.register("huggingface")
class HuggingFace(EncodedSource):
    """A data set on Hugging Face's hub, or a folder that the library datasets reads; `data.path` names it.

    Rows are those of the library, in its order. It copies Parquet files once into Arrow files in its cache, and maps
    these into memory; `options.cache_dir` says where, by default `HF_HOME` does. A data set that is in the cache is
    opened from there, without asking the hub for a younger one; `options.revision`, a commit, makes sure which one it
    is. `options.config` chooses among the subsets of a data set, `options.image_column` and `options.label_column`
    among its columns.
    """

    option_names = ("image_column", "label_column", "config", "revision", "cache_dir")
    has_path = True

    def __init__(self, data: DataSection, input_shape: Shape) -> None:
        super().__init__(data, input_shape)
        if data.root is not None:
            raise DataError(f"data.root is '{data.root}'; allowed for data set 'huggingface': null (see data.path)")
        wrong = next((name for name, value in data.options.items() if not isinstance(value, str)), None)
        if wrong is not None:
            raise DataError(f"data.options.{wrong} is {data.options[wrong]!r}; allowed: text")
        self._path, found = str(data.path), load_splits(data)
        self.splits = tuple(found)
        self._columns = find_columns(next(iter(found.values())).features, data)
        self._rows = {split: rows_of(rows, self._columns) for split, rows in found.items()}
        self.class_names = class_names(self._rows, self._columns[1])
        self.num_classes = len(self.class_names)

    def num_samples(self, split: str) -> int:
        """Return the number of rows of a split."""
        return len(self._rows[self.resolve(split)])

    def classes(self, split: str) -> np.ndarray:
        """Return the class of each row of a split, from the column of labels alone."""
        label = self._columns[1]
        rows = self._rows[self.resolve(split)].select_columns([label]).with_format("arrow")
        return np.asarray(pc.fill_null(rows[:].column(label), -1).to_numpy(), dtype=np.int64)

    def dataset(self, split: str, *, augment: bool = False) -> HuggingFaceDataset:
        """Return a split."""
        name = self.resolve(split)
        return HuggingFaceDataset(
            self._rows[name],
            f"{self._path} {name}",
            self._columns,
            num_classes=self.num_classes,
            preprocessing=self.preprocessing,
            augment=augment,
        )

    def reading_order(self, split: str, indices: np.ndarray) -> np.ndarray:
        """Return the places of indices in the order in which the files hold their samples."""
        return np.argsort(indices, kind="stable")
