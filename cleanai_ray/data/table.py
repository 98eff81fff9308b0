"""Tables of numbers for regression: some columns are predicted from the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import csv
from torch import Tensor
from torch.utils.data import Dataset

from cleanai_ray.config.sections import DataSection
from cleanai_ray.data.augment import Indices
from cleanai_ray.data.source import ImageSource, Shape, find_root
from cleanai_ray.errors import DataError
from cleanai_ray.registry import DATASETS

_SPLITS = ("train", "val", "validation", "test")
_CONSTANT = 1e-9
_EXPECTED = "a folder with train.csv and val.csv or test.csv, whose columns are numbers and have the same names"


class TableDataset(Dataset[tuple[Tensor, Tensor]]):
    """One split in memory.

    Args:
        inputs: Columns to predict from, float32 [N, columns].
        targets: Columns to predict, float32 [N, targets].
    """

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self._inputs = inputs
        self._targets = targets

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._inputs[index], self._targets[index]

    def batch(self, indices: Indices, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return inputs float32 [N, columns] and targets float32 [N, targets]; the seed is not read."""
        rows = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        return self._inputs[rows], self._targets[rows]


@DATASETS.register("table")
class Table(ImageSource):
    """Rows of train.csv and val.csv or test.csv; `data.options.targets` names the columns that are predicted.

    All columns are standardised by mean and standard deviation of train.csv, so an error is in standard deviations of
    the target.
    """

    tasks = ("regression",)
    channels = ()
    option_names = ("targets",)
    mirrors = False

    def __init__(self, data: DataSection, input_shape: Shape) -> None:
        super().__init__(data, input_shape)
        self._root = find_root(data.root, (), _EXPECTED)
        self.splits = tuple(split for split in _SPLITS if (self._root / f"{split}.csv").is_file())
        if "train" not in self.splits:
            raise DataError(f"data.root '{data.root}' holds no train.csv; expected {_EXPECTED}")
        train = self._table("train")
        self.class_names = _targets(data, train.column_names)
        self.num_classes = len(self.class_names)
        self._columns = [name for name in train.column_names if name not in self.class_names]
        if tuple(input_shape) != (len(self._columns),):
            raise DataError(
                f"model.input_shape is {list(input_shape)}; allowed with data set 'table' at {data.root}: "
                f"[{len(self._columns)}], the number of its other columns"
            )
        values = self._values("train")
        self._mean, std = values.mean(0), values.std(0)
        # A column that is constant in train.csv has no scale of its own.
        self._std = np.where(std > _CONSTANT * np.maximum(np.abs(self._mean), 1.0), std, 1.0)
        self._tensors: dict[str, tuple[Tensor, Tensor]] = {}

    def _table(self, split: str) -> pa.Table:
        path = self._root / f"{split}.csv"
        try:
            return csv.read_csv(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"'{path}' cannot be read: {' '.join(str(error).split())}") from error

    def _values(self, split: str) -> np.ndarray:
        """Return all columns of a split, float64 [N, columns + targets]."""
        table, names = self._table(split), [*self._columns, *self.class_names]
        absent = [name for name in names if name not in table.column_names]
        if absent:
            raise DataError(f"'{self._root / split}.csv' has no column '{absent[0]}'; allowed: those of train.csv")
        try:
            columns = [table.column(name).cast(pa.float64()).to_numpy() for name in names]
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(f"'{self._root / split}.csv' holds what is no number: {error}") from error
        values = np.stack(columns, axis=1)
        if not np.isfinite(values).all():
            name = names[int(np.flatnonzero(~np.isfinite(values).all(0))[0])]
            raise DataError(f"column '{name}' of '{self._root / split}.csv' lacks a value; allowed: numbers")
        return values

    def _split(self, split: str) -> tuple[Tensor, Tensor]:
        name = self.resolve(split)
        if name not in self._tensors:
            values = torch.from_numpy(((self._values(name) - self._mean) / self._std).astype(np.float32))
            self._tensors[name] = values[:, : len(self._columns)], values[:, len(self._columns) :]
        return self._tensors[name]

    def num_samples(self, split: str) -> int:
        """Return the number of rows of a split."""
        return len(self._split(split)[0])

    def dataset(self, split: str, *, augment: bool = False) -> TableDataset:
        """Return a split; rows have no training transform."""
        return TableDataset(*self._split(split))

    def describe_preprocessing(self) -> dict[str, Any]:
        """Return mean and standard deviation of every column, those that are predicted last."""
        return {"mean": tuple(self._mean.tolist()), "std": tuple(self._std.tolist())}

    def describe(self, split: str, index: int) -> str:
        """Return the file of a row, and its number."""
        return f"{Path(self._root) / self.resolve(split)}.csv row {index}"


def _targets(data: DataSection, columns: list[str]) -> tuple[str, ...]:
    given = data.options.get("targets")
    if not isinstance(given, list) or not given or not all(name in columns for name in given):
        raise DataError(f"data.options.targets is {given!r}; allowed: a list of columns of train.csv, {columns}")
    return tuple(given)
