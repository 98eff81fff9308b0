"""Fashion-MNIST (Xiao et al. 2017) in its original idx files."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from cleanai_ray.config.sections import DataSection
from cleanai_ray.data.in_memory import InMemorySource, PixelFormat
from cleanai_ray.data.source import Shape, find_root
from cleanai_ray.errors import DataError
from cleanai_ray.registry import DATASETS

_USUAL_PLACES = ("/usr/share/datasets/fashion-mnist",)
_PREFIXES = {"train": "train", "test": "t10k"}
_UINT8 = 8


def read_idx(path: Path) -> np.ndarray:
    """Read an idx file of unsigned bytes, gzip-compressed where its name ends in `.gz`.

    The format: two zero bytes, the type (8: unsigned byte), the number of dimensions, each dimension as a big-endian
    32-bit integer, then the values in row-major order.

    Returns:
        A writable uint8 array of the dimensions that the file declares.

    Raises:
        DataError: When the file cannot be read, or does not hold what its header declares.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"'{path}' cannot be read: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UINT8:
        raise DataError(
            f"'{path}' is not an idx file of unsigned bytes: it begins with {content[:4].hex() or 'nothing'}"
        )
    header = 4 + 4 * content[3]
    shape = tuple(int(size) for size in np.frombuffer(content[4:header], dtype=">u4"))
    if len(shape) != content[3] or len(content) - header != math.prod(shape):
        raise DataError(f"'{path}' declares shape {list(shape)} but holds {max(len(content) - header, 0)} values")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy()


@DATASETS.register("fashion_mnist")
class FashionMNIST(InMemorySource):
    """70,000 grey images of clothing, 28 x 28 pixels, from idx files (Debian's or torchvision's folder)."""

    channels = (1, 3)
    num_classes = 10
    class_names = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    splits = ("train", "test")
    pixels = PixelFormat(scale=255.0, mean=(0.2860,), std=(0.3530,), padding=2, flip=True)

    def __init__(self, data: DataSection, input_shape: Shape) -> None:
        super().__init__(data, input_shape)
        expected = "a folder of train-images-idx3-ubyte[.gz] and its three companions, or one with FashionMNIST/raw"
        self._root = find_root(data.root, _USUAL_PLACES, expected)
        self._files = {split: self._find(split, expected) for split in self.splits}

    def _find(self, split: str, expected: str) -> tuple[Path, Path]:
        names = [f"{_PREFIXES[split]}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
        for folder in (self._root, self._root / "FashionMNIST" / "raw", self._root / "raw"):
            found = [
                next(
                    (folder / f"{name}{ending}" for ending in ("", ".gz") if (folder / f"{name}{ending}").is_file()),
                    None,
                )
                for name in names
            ]
            if found[0] is not None and found[1] is not None:
                return found[0], found[1]
        raise DataError(f"data.root '{self._root}' lacks {names[0]} or {names[1]} (plain or .gz); expected {expected}")

    def read(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels and classes of a split, from its two files."""
        images_file, labels_file = self._files[split]
        images, labels = read_idx(images_file), read_idx(labels_file)
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise DataError(
                f"'{images_file}' of shape {list(images.shape)} and '{labels_file}' of shape {list(labels.shape)} "
                "do not match; expected [N, height, width] and [N]"
            )
        if labels.size and labels.max() >= self.num_classes:
            raise DataError(f"'{labels_file}' holds label {labels.max()}; allowed: 0 to {self.num_classes - 1}")
        return images[:, None], labels

    def describe(self, split: str, index: int) -> str:
        """Return the file that holds the sample, and its row there."""
        return f"{self._files[self.resolve(split)][0]} row {index}"
