"""Images in folders named after their class, or listed as Food-101 lists them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import fs

from cleanai_ray.config.sections import DataSection
from cleanai_ray.data.encoded import EncodedDataset, EncodedSource
from cleanai_ray.data.filesystems import ProcessFilesystem
from cleanai_ray.data.held_out import ONE_IN, part_of
from cleanai_ray.data.image_index import ImageIndex, index_folder, list_images
from cleanai_ray.data.pixels import stamp_of, version_of
from cleanai_ray.data.source import Shape
from cleanai_ray.data.transforms import Preprocessing
from cleanai_ray.errors import ArtifactError, DataError, SampleError
from cleanai_ray.nn.notices import notice
from cleanai_ray.registry import DATASETS
from cleanai_ray.storage.run_directory import resolve_filesystem
from cleanai_ray.storage.split_folders import HELD_OUT, SPLITS

_USUAL_CACHE = "~/.cache/cleanai-ray"
_EXPECTED = (
    "a folder with train/ and val/ or test/, each with one folder of images a class; train/ alone; such folders "
    "alone; or Food-101's images/ with meta/train.txt and meta/test.txt"
)


class FileDataset(EncodedDataset):
    """Image files, decoded one at a time.

    Args:
        filesystem: Where they are stored.
        root: Folder on it that the index's names are relative to.
        prefix: Put before a path in messages: `s3://`, or nothing on this machine.
        index: The files and their classes.
        preprocessing: Applied to each image.
        augment: Apply the training transform.
        versions: The versions of the files of an object store, by name; files on this machine are looked at.
    """

    def __init__(
        self,
        filesystem: ProcessFilesystem,
        root: str,
        prefix: str,
        index: ImageIndex,
        *,
        preprocessing: Preprocessing,
        augment: bool,
        versions: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(preprocessing, augment=augment)
        self._filesystem = filesystem
        self._root = root
        self._prefix = prefix
        self._index = index
        self._versions = versions

    @property
    def multiprocessing_context(self) -> str | None:
        """Start method that worker processes need."""
        return self._filesystem.multiprocessing_context

    def __len__(self) -> int:
        return len(self._index)

    def where(self, index: int) -> str:
        """Return the path or URL of a sample."""
        return f"{self._prefix}{self._root}/{self._index.name(index)}"

    def encoded(self, index: int) -> tuple[bytes | Path, int]:
        """Return the path of an image on this machine, or its content, and its class."""
        where = self.where(index)
        return self._read(index, where) if self._prefix else Path(where), int(self._index.labels[index])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_versions": None}

    def stamps(self, indices: np.ndarray) -> np.ndarray | None:
        """Return a digest of the path, size and times of each file, uint64 [N]; None where a store told no versions."""
        if self._prefix and self._versions is None:
            return None
        return np.array([stamp_of(self.where(int(index)), *self._version(int(index))) for index in indices], np.uint64)

    def _version(self, index: int) -> tuple[object, ...]:
        if self._versions is not None:
            return (self._versions.get(self._index.name(index), "gone"),)
        return version_of(self.where(index))

    def _read(self, index: int, where: str) -> bytes:
        try:
            with self._filesystem.get().open_input_file(f"{self._root}/{self._index.name(index)}") as stream:
                return stream.read()
        except FileNotFoundError as error:
            raise SampleError("cannot be decoded: it is gone", where) from error
        except OSError as error:
            raise DataError(f"sample '{where}' cannot be read: {' '.join(str(error).split())}") from error


@DATASETS.register("image_folder")
class ImageFolder(EncodedSource):
    """Image files in one folder a class below train/ and val/ or test/ (ImageNet), or in Food-101's own layout.

    Where there is only train/, or only the folders of the classes, about one image in five is held out as `val`, and a
    notice says so. A class may be called train, val or test: a split holds folders with images, and a class images.

    The files of a folder on this machine are listed once: an index of them is stored in `data.options.index_cache`, or
    by default in `$CLEANAI_CACHE` or `~/.cache/cleanai-ray`; with `index_cache: false`, none is stored.
    `image_index.index_folder` says which changes are noticed. An object store is listed by every process, since it has
    no folders whose modification times could be compared.
    """

    option_names = ("index_cache",)

    def __init__(self, data: DataSection, input_shape: Shape) -> None:
        super().__init__(data, input_shape)
        self._cache = _cache_folder(data)
        self._whole: str | None = None
        if data.root is None:
            raise DataError(f"data.root is null; expected {_EXPECTED}")
        try:
            self._filesystem, self._root = resolve_filesystem(data.root)
            self._files, self._is_local = ProcessFilesystem(data.root), isinstance(self._filesystem, fs.LocalFileSystem)
            self._prefix = "" if self._is_local else f"{data.root.partition('://')[0]}://"
            self._root = self._root.rstrip("/")
            if not self._is("", fs.FileType.Directory):
                raise DataError(f"data.root '{data.root}' does not exist or is not a folder; expected {_EXPECTED}")
            self._listed = self._find_splits()
        except (ArtifactError, OSError) as error:
            raise DataError(f"data.root '{data.root}' cannot be opened: {error}; expected {_EXPECTED}") from error
        if not self.splits or not self.class_names:
            raise DataError(f"data.root '{data.root}' holds no splits with classes; expected {_EXPECTED}")
        self.num_classes = len(self.class_names)
        self._indices: dict[str, ImageIndex] = {}
        self._versions: dict[str, dict[str, str]] = {}

    def _find_splits(self) -> bool:
        """Find splits and classes; return whether the splits are given by lists, as in Food-101."""
        if self._is("food-101/meta", fs.FileType.Directory):
            self._root += "/food-101"
        listed = self._is("meta", fs.FileType.Directory) and self._is("images", fs.FileType.Directory)
        if listed:
            self.splits = tuple(split for split in SPLITS if self._is(f"meta/{split}.txt", fs.FileType.File))
        else:
            self.splits = tuple(split for split in SPLITS if self._is(split, fs.FileType.Directory))
            self._hold_out()
        folder = "images" if listed else self._whole or next(iter(self.splits), None)
        self.class_names = () if folder is None else self._folders(folder)
        return listed

    def _hold_out(self) -> None:
        """Find the folder whose images have to be split, if there is one: `train`, or the data set's own."""
        parent, _, own = self._root.rpartition("/")
        if parent and not any(map(self._holds_classes, self.splits)) and self._are_classes(self._folders("")):
            self._root, self._whole = parent, own
        elif self.splits == ("train",):
            self._whole = "train"
        else:
            return
        self.splits = ("train", "val")
        self.location = *self.location, f"held_out={HELD_OUT}"
        notice(
            f"'{self._prefix}{self._root}/{self._whole}' comes without val/ or test/: about one image in {ONE_IN} of "
            "each class is held out as 'val'. A model that was trained on them scores better there than on new images"
        )

    def _are_classes(self, folders: tuple[str, ...]) -> bool:
        """Return whether there are two folders or more, and an image in each."""
        return len(folders) > 1 and all(map(self._has_image, folders))

    def _holds_classes(self, split: str) -> bool:
        """Return whether there are images in the folders of a folder, at any depth."""
        return any(self._has_image(f"{split}/{name}", is_deep=True) for name in self._folders(split))

    def _has_image(self, folder: str, *, is_deep: bool = False) -> bool:
        from torchvision.datasets.folder import is_image_file

        if self._is_local:  # a walk stops at the first image, and asks for no sizes
            walked = os.walk(f"{self._root}/{folder}")
            return any(any(map(is_image_file, files)) for _, _, files in (walked if is_deep else islice(walked, 1)))
        infos = self._filesystem.get_file_info(fs.FileSelector(f"{self._root}/{folder}", recursive=is_deep))
        return any(info.type == fs.FileType.File and is_image_file(info.base_name) for info in infos)

    def _is(self, name: str, kind: fs.FileType) -> bool:
        return self._filesystem.get_file_info(f"{self._root}/{name}".rstrip("/")).type == kind

    def _folders(self, name: str) -> tuple[str, ...]:
        if self._is_local:
            with os.scandir(f"{self._root}/{name}") as entries:
                found = [entry.name for entry in entries if entry.is_dir()]
        else:
            infos = self._filesystem.get_file_info(fs.FileSelector(f"{self._root}/{name}"))
            found = [info.base_name for info in infos if info.type == fs.FileType.Directory]
        return tuple(sorted(entry for entry in found if not entry.startswith(".")))

    def _samples(self, split: str) -> ImageIndex:
        name = self.resolve(split)
        if name not in self._indices:
            try:
                index = self._read_list(name) if self._listed else self._find_images(self._whole or name)
                if self._whole is not None:
                    index = part_of(index, is_held_out=name == "val")
            except OSError as error:
                raise DataError(f"split '{name}' of '{self._prefix}{self._root}' cannot be listed: {error}") from error
            if not len(index):
                raise DataError(
                    f"split '{name}' of data.root '{self._prefix}{self._root}' holds no images; expected {_EXPECTED}"
                )
            self._indices[name] = index
        return self._indices[name]

    def _find_images(self, split: str) -> ImageIndex:
        if self._is_local:
            self._check_classes(split, self._folders(split))
            return index_folder(Path(self._root), split, self.class_names, self._cache)
        versions = self._versions.setdefault(split, {})
        found = list_images(self._filesystem, self._root, split, versions)
        self._check_classes(split, tuple(name for name in found if not name.startswith(".")))
        return ImageIndex.of_classes(found.get(name, []) for name in self.class_names)

    def _check_classes(self, split: str, found: tuple[str, ...]) -> None:
        strange = sorted(set(found) - set(self.class_names))
        if strange:
            root = f"{self._prefix}{self._root}"
            raise DataError(f"'{root}/{split}' holds class '{strange[0]}', which '{root}/{self.splits[0]}' does not")

    def _read_list(self, split: str) -> ImageIndex:
        by_class: dict[str, list[str]] = {name: [] for name in self.class_names}
        with self._filesystem.open_input_file(f"{self._root}/meta/{split}.txt") as stream:
            lines = stream.read().decode().split()
        for line in lines:
            name = line.partition("/")[0]
            if name not in by_class:
                root = f"{self._prefix}{self._root}"
                raise DataError(
                    f"'{root}/meta/{split}.txt' lists '{line}', but '{root}/images' holds no class '{name}'"
                )
            by_class[name].append(f"images/{line}.jpg")
        return ImageIndex.of_classes(by_class.values())

    def number_classes(self, names: tuple[str, ...]) -> None:
        """Number the classes in another order than that of their names."""
        self.class_names = names
        self._indices.clear()

    def num_samples(self, split: str) -> int:
        """Return the number of images of a split."""
        return len(self._samples(split))

    def classes(self, split: str) -> np.ndarray:
        """Return the class of each image of a split, from its folder."""
        return np.asarray(self._samples(split).labels, dtype=np.int64)

    def dataset(self, split: str, *, augment: bool = False) -> FileDataset:
        """Return a split."""
        index, steps = self._samples(split), self.preprocessing
        versions = self._versions.get(self._whole or self.resolve(split))
        return FileDataset(
            self._files, self._root, self._prefix, index, preprocessing=steps, augment=augment, versions=versions
        )


def _cache_folder(data: DataSection) -> str | None:
    """Return the folder of index files; None where none are stored."""
    given = data.options.get("index_cache")
    if given is False:
        return None
    if given is not None and not isinstance(given, str):
        raise DataError(f"data.options.index_cache is {given!r}; allowed: a folder, or false for no index")
    folder = given or os.environ.get("CLEANAI_CACHE") or _USUAL_CACHE
    return None if os.path.expanduser(folder).startswith("~") else folder
