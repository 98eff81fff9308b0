"""Images in folders named after their class, or listed as Food-101 lists them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from cleanai_ray.data.source import ImageSource, Shape, find_root
from cleanai_ray.data.transforms import decode_image, image_transform
from cleanai_ray.errors import DataError
from cleanai_ray.registry import DATASETS
from cleanai_ray.sections import DataSection

_SPLITS = ("train", "val", "validation", "test")
_ENDINGS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"))
_EXPECTED = (
    "a folder with train/ and val/ or test/, each with one folder of images a class, "
    "or Food-101's images/ with meta/train.txt and meta/test.txt"
)


class FileDataset(Dataset[tuple[Tensor, int]]):
    """Image files, decoded one at a time.

    Args:
        paths: The files.
        labels: The class of each.
        input_shape: Channels (3), height and width to deliver.
        augment: Apply the training transform.
    """

    def __init__(self, paths: Sequence[Path], labels: np.ndarray, *, input_shape: Shape, augment: bool) -> None:
        self._paths = paths
        self._labels = labels
        self._transform = image_transform(input_shape, augment=augment)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path = self._paths[index]
        return self._transform(decode_image(path, f"'{path}'")), int(self._labels[index])


def _class_folders(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."))


def _images_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _ENDINGS)


@DATASETS.register("image_folder")
class ImageFolder(ImageSource):
    """Image files in one folder a class below train/ and val/ or test/ (ImageNet), or in Food-101's own layout."""

    def __init__(self, data: DataSection, input_shape: Shape) -> None:
        super().__init__(data, input_shape)
        root = find_root(data.root, (), _EXPECTED)
        nested = root / "food-101"
        self._root = nested if (nested / "meta").is_dir() else root
        self._listed = (self._root / "meta").is_dir() and (self._root / "images").is_dir()
        if self._listed:
            self.splits = tuple(split for split in _SPLITS if (self._root / "meta" / f"{split}.txt").is_file())
            self.class_names = _class_folders(self._root / "images")
        else:
            self.splits = tuple(split for split in _SPLITS if (self._root / split).is_dir())
            self.class_names = _class_folders(self._root / self.splits[0]) if self.splits else ()
        if not self.splits or not self.class_names:
            raise DataError(f"data.root '{data.root}' holds no splits with classes; expected {_EXPECTED}")
        self.num_classes = len(self.class_names)
        self._cache: dict[str, tuple[list[Path], np.ndarray]] = {}

    def _samples(self, split: str) -> tuple[list[Path], np.ndarray]:
        name = self.resolve(split)
        if name not in self._cache:
            by_class = self._read_list(name) if self._listed else self._walk(name)
            paths = [path for paths in by_class for path in paths]
            if not paths:
                raise DataError(f"split '{name}' of data.root '{self._root}' holds no images; expected {_EXPECTED}")
            labels = np.repeat(np.arange(self.num_classes), [len(paths) for paths in by_class])
            self._cache[name] = paths, labels
        return self._cache[name]

    def _walk(self, split: str) -> list[list[Path]]:
        folder = self._root / split
        strange = sorted(set(_class_folders(folder)) - set(self.class_names))
        if strange:
            raise DataError(f"'{folder}' holds class '{strange[0]}', which '{self._root / self.splits[0]}' does not")
        return [_images_below(folder / name) for name in self.class_names]

    def _read_list(self, split: str) -> list[list[Path]]:
        by_class: dict[str, list[Path]] = {name: [] for name in self.class_names}
        file = self._root / "meta" / f"{split}.txt"
        for line in file.read_text(encoding="utf-8").split():
            name = line.partition("/")[0]
            if name not in by_class:
                raise DataError(f"'{file}' lists '{line}', but '{self._root / 'images'}' holds no class '{name}'")
            by_class[name].append(self._root / "images" / f"{line}.jpg")
        return list(by_class.values())

    def num_samples(self, split: str) -> int:
        """Return the number of images of a split."""
        return len(self._samples(split)[0])

    def dataset(self, split: str, *, augment: bool = False) -> FileDataset:
        """Return a split."""
        paths, labels = self._samples(split)
        return FileDataset(paths, labels, input_shape=self.input_shape, augment=augment)

    def describe(self, split: str, index: int) -> str:
        """Return the sample's path."""
        return str(self._samples(split)[0][index])
