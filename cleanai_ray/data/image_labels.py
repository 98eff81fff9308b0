"""Image files and a table of the labels of each, for multi-label classification."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
from pyarrow import csv

from cleanai_ray.config.sections import DataSection
from cleanai_ray.data.encoded import EncodedSource
from cleanai_ray.data.filesystems import ProcessFilesystem
from cleanai_ray.data.image_folder import FileDataset
from cleanai_ray.data.image_index import ImageIndex
from cleanai_ray.data.label_sets import LabelSetDataset, marks_of, names_in
from cleanai_ray.data.source import Shape, find_root
from cleanai_ray.errors import DataError
from cleanai_ray.registry import DATASETS

_SPLITS = ("train", "val", "validation", "test")
_IMAGE, _LABELS = "image", "labels"
_EXPECTED = (
    "a folder with train.csv and val.csv or test.csv, each with a column of file names, and a column of labels "
    "(names with semicolons between them) or one of 0 and 1 for each class"
)


@DATASETS.register("image_labels")
class ImageLabels(EncodedSource):
    """Image files with any number of labels each: train.csv and val.csv or test.csv beside the images.

    A file's name is relative to the folder of its split (train/ beside train.csv), or to the data set's where there is
    none. Labels are in the column `labels`, as names with semicolons or vertical bars between them, or else in a column
    of 0 and 1 for each class. The classes are those of train.csv, by their names or in the order of its columns.
    `data.options.image_column` and `data.options.labels_column` rename the columns.
    """

    tasks = ("multilabel_classification",)
    option_names = ("image_column", "labels_column")

    def __init__(self, data: DataSection, input_shape: Shape) -> None:
        super().__init__(data, input_shape)
        self._root = find_root(data.root, (), _EXPECTED).absolute()
        self._image = str(data.options.get("image_column", _IMAGE))
        self._labels = str(data.options.get("labels_column", _LABELS))
        self.splits = tuple(split for split in _SPLITS if (self._root / f"{split}.csv").is_file())
        if not self.splits:
            raise DataError(f"data.root '{data.root}' holds no train.csv; expected {_EXPECTED}")
        self._tables: dict[str, pa.Table] = {}
        self._marks: dict[str, np.ndarray] = {}
        self.class_names = self._find_classes()
        self.num_classes = len(self.class_names)
        self._files = ProcessFilesystem(str(self._root))

    def _table(self, split: str) -> pa.Table:
        name = self.resolve(split)
        if name not in self._tables:
            path = self._root / f"{name}.csv"
            # Names such as 007 are no numbers.
            options = csv.ConvertOptions(column_types={self._image: pa.string(), self._labels: pa.string()})
            try:
                table = csv.read_csv(path, convert_options=options)
            except (OSError, pa.ArrowInvalid) as error:
                raise DataError(f"'{path}' cannot be read: {' '.join(str(error).split())}") from error
            if self._image not in table.column_names:
                raise DataError(f"'{path}' has no column '{self._image}'; expected {_EXPECTED}")
            if not len(table):
                raise DataError(f"'{path}' lists no image; expected {_EXPECTED}")
            self._tables[name] = table
        return self._tables[name]

    @property
    def _has_names(self) -> bool:
        return self._labels in self._table(self.splits[0]).column_names

    def _find_classes(self) -> tuple[str, ...]:
        table = self._table(self.splits[0])
        if not self._has_names:
            found = tuple(name for name in table.column_names if name != self._image)
        else:
            found = tuple(sorted({name for names in self._named(self.splits[0]) for name in names}))
        if not found:
            raise DataError(f"'{self._root / self.splits[0]}.csv' names no class; expected {_EXPECTED}")
        return found

    def _named(self, split: str) -> list[list[str]]:
        table = self._table(split)
        if self._labels not in table.column_names:
            raise DataError(f"'{self._root / self.resolve(split)}.csv' has no column '{self._labels}'")
        return names_in([value or "" for value in table.column(self._labels).to_pylist()])

    def _marks_of(self, split: str) -> np.ndarray:
        """Return uint8 [N, classes]."""
        name = self.resolve(split)
        if name not in self._marks:
            self._marks[name] = self._from_names(name) if self._has_names else self._from_columns(name)
        return self._marks[name]

    def _from_names(self, split: str) -> np.ndarray:
        place = {name: number for number, name in enumerate(self.class_names)}
        rows = self._named(split)
        strange = next((name for names in rows for name in names if name not in place), None)
        if strange is not None:
            raise DataError(
                f"'{self._root / split}.csv' has label '{strange}', which {self.splits[0]}.csv has not; allowed: "
                f"{', '.join(self.class_names[:20])}"
            )
        return np.stack([marks_of((place[name] for name in names), self.num_classes) for names in rows])

    def _from_columns(self, split: str) -> np.ndarray:
        table, columns = self._table(split), []
        for name in self.class_names:
            if name not in table.column_names:
                raise DataError(f"'{self._root / split}.csv' has no column '{name}', which {self.splits[0]}.csv has")
            values = table.column(name).to_pylist()
            wrong = next((value for value in values if value not in (0, 1)), 0)
            if wrong not in (0, 1):
                raise DataError(f"column '{name}' of '{self._root / split}.csv' holds {wrong!r}; allowed: 0 and 1")
            columns.append(np.array(values, np.uint8))
        return np.stack(columns, axis=1)

    def _paths(self, split: str) -> list[str]:
        """Return the images of a split, relative to the data set's folder."""
        folder = f"{split}/" if (self._root / split).is_dir() else ""
        return [f"{folder}{name}" for name in self._table(split).column(self._image).to_pylist()]

    def num_samples(self, split: str) -> int:
        """Return the number of images of a split."""
        return len(self._table(split))

    def dataset(self, split: str, *, augment: bool = False) -> LabelSetDataset:
        """Return a split."""
        name = self.resolve(split)
        names = pa.array([os.fsencode(path) for path in self._paths(name)], pa.binary())
        index = ImageIndex(names, np.zeros(len(names), np.int32))
        files = FileDataset(
            self._files, str(self._root), "", index, preprocessing=self.preprocessing, augment=augment, versions=None
        )
        return LabelSetDataset(files, self._marks_of(name))

    def describe(self, split: str, index: int) -> str:
        """Return the path of an image."""
        return str(self._root / self._paths(self.resolve(split))[index])
