"""scikit-learn's embedded digits (Alpaydin and Kaynak 1998): nothing to download."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution

import numpy as np

from cleanai_ray.config.sections import DataSection
from cleanai_ray.data.in_memory import InMemorySource, PixelFormat
from cleanai_ray.data.source import Shape
from cleanai_ray.registry import DATASETS

_SPLIT_SEED = 0
_TEST_SHARE = 0.2
_TABLE = "sklearn/datasets/data/digits.csv.gz"


def _test_rows(labels: np.ndarray) -> np.ndarray:
    generator = np.random.default_rng(_SPLIT_SEED)
    rows = [generator.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    return np.sort(np.concatenate([part[: round(_TEST_SHARE * len(part))] for part in rows]))


def _table() -> np.ndarray:
    """Return the 1,797 digits [samples, 64 pixels and the class], as integers.

    `load_digits` reads the same file, once pandas and scipy.stats are imported: most of a second in every process.
    """
    try:
        path = distribution("scikit-learn").locate_file(_TABLE)
        return np.loadtxt(str(path), delimiter=",", dtype=np.int64)
    except (OSError, PackageNotFoundError):  # a release that keeps it elsewhere, or a folder that pip does not know
        from sklearn.datasets import load_digits

        bunch = load_digits()
        return np.column_stack([bunch.data, bunch.target]).astype(np.int64)


@DATASETS.register("digits")
class Digits(InMemorySource):
    """1,797 handwritten digits of 8 x 8 pixels, embedded in scikit-learn; stratified train and test split, 80/20."""

    channels = (1, 3)
    num_classes = 10
    class_names = tuple(str(digit) for digit in range(10))
    splits = ("train", "test")
    pixels = PixelFormat(scale=16.0, mean=(0.3053,), std=(0.3760,), padding=1, flip=False)

    def __init__(self, data: DataSection, input_shape: Shape) -> None:
        super().__init__(data, input_shape)
        table = _table()
        self._images = table[:, :-1].reshape(-1, 1, 8, 8).astype(np.uint8)
        self._labels = table[:, -1]
        test = _test_rows(self._labels)
        self._rows = {"test": test, "train": np.setdiff1d(np.arange(len(self._labels)), test)}

    def read(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels (0 to 16) and classes of a split."""
        rows = self._rows[split]
        return self._images[rows], self._labels[rows]

    def describe(self, split: str, index: int) -> str:
        """Return the sample's place in the split and its row in scikit-learn's array."""
        return f"digits {split}[{index}] (row {self._rows[self.resolve(split)][index]} of load_digits())"
