"""Encoded images in Parquet files with a list of labels each, for multi-label classification."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from cleanai_ray.config.sections import DataSection
from cleanai_ray.data.label_sets import LabelSetDataset, marks_of
from cleanai_ray.data.parquet_images import ParquetDataset, ParquetImages
from cleanai_ray.data.source import Shape
from cleanai_ray.errors import DataError
from cleanai_ray.registry import DATASETS


class _Images(ParquetDataset):
    """The images alone: their column of labels is read as a whole."""

    def class_of(self, label: Any, index: int) -> int:
        return 0


@DATASETS.register("parquet_labels")
class ParquetLabels(ParquetImages):
    """Encoded images in Parquet files, as `parquet_images`, with a column of lists of labels: numbers or names.
    Nulls in a list are left out, and a null stands for an empty list.

    The column is `labels`, or `data.options.label_column`. Classes are those that the files name (as Hugging Face's
    `datasets` writes them), or the names that occur in the first split, sorted, or the numbers up to the highest.
    """

    tasks = ("multilabel_classification",)

    def __init__(self, data: DataSection, input_shape: Shape) -> None:
        self._marks: dict[str, np.ndarray] = {}
        options = {"label_column": "labels", **data.options}
        super().__init__(data.model_copy(update={"options": options}), input_shape)

    def _read_class_names(self, files: dict[str, list[str]]) -> tuple[str, ...]:
        self._split_files = files
        first = files[self.splits[0]]
        with self._open(first[0]) as parquet:
            named = _names_of_items(parquet.schema_arrow, self._columns.label)
        if named:
            return named
        rows = self._lists(self.splits[0])
        names = {label for label in chain.from_iterable(rows) if isinstance(label, str)}
        if names:
            return tuple(sorted(names))
        every = chain.from_iterable(chain.from_iterable(map(self._lists, self.splits)))
        highest = max((label for label in every if isinstance(label, int)), default=-1)
        if highest < 0:
            raise DataError(f"column '{self._columns.label}' of '{first[0]}' names no class; expected lists of labels")
        return tuple(str(label) for label in range(highest + 1))

    def _lists(self, split: str) -> list[list[Any]]:
        """Return the labels of every sample of a split."""
        rows: list[list[Any]] = []
        for file in self._split_files[split]:
            with self._open(file) as parquet:
                column = parquet.read(columns=[self._columns.label]).column(0)
            if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
                raise DataError(
                    f"column '{self._columns.label}' of '{file}' holds {column.type}; expected lists of labels"
                )
            rows += [[label for label in value or [] if label is not None] for value in column.to_pylist()]
        if not rows:
            raise DataError(f"split '{split}' of data.root '{self._location}' holds no images")
        return rows

    def _marks_of(self, split: str) -> np.ndarray:
        """Return uint8 [N, classes]."""
        if split not in self._marks:
            places: dict[Any, int] = {name: number for number, name in enumerate(self.class_names)}
            places |= {number: number for number in range(self.num_classes)}
            found = []
            for row, labels in enumerate(self._lists(split)):
                strange = next((label for label in labels if label not in places), None)
                if strange is not None:
                    raise DataError(
                        f"row {row} of split '{split}' of data.root '{self._location}' has label {strange!r}; allowed: "
                        f"0 to {self.num_classes - 1}, or {', '.join(self.class_names[:20])}"
                    )
                found.append(marks_of((places[label] for label in labels), self.num_classes))
            self._marks[split] = np.stack(found)
        return self._marks[split]

    def dataset(self, split: str, *, augment: bool = False) -> LabelSetDataset:  # type: ignore[override]
        """Return a split."""
        return LabelSetDataset(self._images(_Images, split, augment=augment), self._marks_of(self.resolve(split)))

    def describe(self, split: str, index: int) -> str:
        """Return the file of an image, and its row."""
        return self._images(_Images, split).where(index)


def _names_of_items(schema: pa.Schema, column: str) -> tuple[str, ...]:
    """Return the names of classes that `datasets` wrote for the items of a column of lists; none where it did not."""
    try:
        kind = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        item = kind[0] if isinstance(kind, list) else kind["feature"]
        return tuple(str(name) for name in item["names"])
    except (KeyError, TypeError, ValueError, IndexError):
        return ()
