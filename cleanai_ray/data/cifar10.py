"""CIFAR-10 (Krizhevsky 2009) in its Python format, as torchvision stores it."""

from __future__ import annotations

import codecs
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from cleanai_ray.config.sections import DataSection
from cleanai_ray.data.in_memory import InMemorySource, PixelFormat
from cleanai_ray.data.source import Shape, find_root
from cleanai_ray.errors import DataError
from cleanai_ray.registry import DATASETS

_FOLDER = "cifar-10-batches-py"
_USUAL_PLACE = "~/.cache/cleanai-ray/cifar10"
_FILES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
_EXPECTED = f"a folder with {_FOLDER}/data_batch_1 to 5 and test_batch, or data.options.download: true"
_ALLOWED: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): codecs.encode,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
}


class _ArraysOnly(pickle.Unpickler):
    """Loads arrays, and refuses everything else that a file might name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not part of CIFAR-10")
        return _ALLOWED[module, name]


def _read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        content = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        images = np.asarray(content[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        labels = np.asarray(content[b"labels"], dtype=np.int64)
    except Exception as error:  # a damaged pickle can raise anything
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"'{path}' is not a batch of CIFAR-10's Python format ({reason})") from error
    if len(images) != len(labels) or not np.isin(labels, np.arange(10)).all():
        raise DataError(
            f"'{path}' holds {len(images)} images and {len(labels)} labels; expected one of 0 to 9 an image"
        )
    return images, labels


@DATASETS.register("cifar10")
class CIFAR10(InMemorySource):
    """60,000 colour images of 32 x 32 pixels, in torchvision's folder; option download: true fetches it."""

    option_names = (*InMemorySource.option_names, "download")
    num_classes = 10
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    splits = ("train", "test")
    pixels = PixelFormat(scale=255.0, mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616), padding=4, flip=True)

    def __init__(self, data: DataSection, input_shape: Shape) -> None:
        super().__init__(data, input_shape)
        download = data.options.get("download", False)
        if not isinstance(download, bool):
            raise DataError(f"data.options.download is {download!r}; allowed: true, false")
        if download:
            _download(Path(data.root or _USUAL_PLACE).expanduser())
        root = find_root(data.root, (_USUAL_PLACE,), _EXPECTED)
        self._folder = root / _FOLDER if (root / _FOLDER).is_dir() else root
        self._counts: dict[str, list[int]] = {}
        missing = [name for names in _FILES.values() for name in names if not (self._folder / name).is_file()]
        if missing:
            raise DataError(f"data.root '{root}' lacks {missing[0]}; expected {_EXPECTED}")

    def read(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels and classes of a split, from its batch files."""
        parts = [_read_batch(self._folder / name) for name in _FILES[split]]
        self._counts[split] = [len(labels) for _, labels in parts]
        return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])

    def describe(self, split: str, index: int) -> str:
        """Return the batch file that holds the sample, and its row there."""
        name = self.resolve(split)
        self._tensors(name)
        ends = np.cumsum(self._counts[name])
        file = int(np.searchsorted(ends, index, side="right"))
        return f"{self._folder / _FILES[name][file]} row {index - int(ends[file]) + self._counts[name][file]}"


def _download(root: Path) -> None:
    if all((root / _FOLDER / name).is_file() for names in _FILES.values() for name in names):
        return
    from torchvision.datasets import CIFAR10 as Published

    try:
        Published(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"data.options.download: CIFAR-10 could not be fetched into '{root}': {error}") from error
