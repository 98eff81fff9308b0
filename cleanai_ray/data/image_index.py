"""Names and classes of the images below a folder: listed once, and stored in a file."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs

from cleanai_ray.errors import ArtifactError
from cleanai_ray.storage.run_directory import RunDirectory

_FORMAT = 1
_COARSEST_CLOCK = 2_000_000_000
"""Nanoseconds: the coarsest time stamps in use are FAT's, of two seconds."""


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """Images of a split, class by class: a million of them take two buffers instead of a million objects.

    Attributes:
        names: Paths relative to the data set's folder, as the filesystem's bytes [N].
        labels: The class of each, int32 [N].
    """

    names: pa.BinaryArray
    labels: np.ndarray

    @staticmethod
    def of_classes(by_class: Iterable[Sequence[str]]) -> ImageIndex:
        """Return the index of each class's names, sorted folder by folder."""
        chunks = [
            pa.array(sorted(map(os.fsencode, names), key=lambda name: name.replace(b"/", b"\0")), pa.binary())
            for names in by_class
        ]
        labels = np.repeat(np.arange(len(chunks), dtype=np.int32), [len(chunk) for chunk in chunks])
        return ImageIndex(pa.concat_arrays(chunks), labels)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Return the path of an image relative to the data set's folder."""
        return os.fsdecode(self.names[index].as_py())


def list_images(
    filesystem: fs.FileSystem, root: str, split: str, versions: dict[str, str] | None = None
) -> dict[str, list[str]]:
    """Return the images of each class of a split, by one recursive listing.

    Args:
        filesystem: Filesystem of the data set; for a folder on this machine `index_folder` is faster.
        root: The data set's folder on it.
        split: Name of the split's folder.
        versions: Receives the size and time of each image, by its path.

    Returns:
        Paths relative to `root`, for each folder in the split's.
    """
    from torchvision.datasets.folder import is_image_file  # as slow to import as torch itself

    found: dict[str, list[str]] = {}
    for info in filesystem.get_file_info(fs.FileSelector(f"{root}/{split}", recursive=True)):
        name = info.path.removeprefix(root).lstrip("/")
        parts = name.split("/")
        if info.type == fs.FileType.Directory or len(parts) > 2:
            images = found.setdefault(parts[1], [])
            if info.type == fs.FileType.File and is_image_file(name):
                images.append(name)
                if versions is not None:
                    versions[name] = f"{info.size} {info.mtime_ns}"
    return found


def index_folder(root: Path, split: str, classes: Sequence[str], cache: str | None) -> ImageIndex:
    """Return the images of a split on this machine: from an index file, or by listing the folders and storing one.

    An index file is used if every folder still has the modification time that it had just before it was listed. Adding,
    removing or renaming a file or folder changes the time of the folder that holds it. The check therefore misses a
    change after which the time was set back (`rsync --times` or `tar` over an existing folder, `touch`), a change on a
    filesystem without such times, and changes behind a symbolic link to a folder other than a class's. Content is not
    checked: a file that was overwritten is read as it is now. A folder that changed less than two seconds before it was
    listed might not show the next change; the index is then not stored.

    Args:
        root: The data set's folder.
        split: Name of the split's folder in it.
        classes: Names of the classes, in the order of their numbers.
        cache: Folder of index files; None: none are used. It is not used either where it cannot be written or read.
    """
    key = hashlib.sha256(os.fsencode(f"{os.path.realpath(root)}/{split}")).hexdigest()[:32]
    name = f"image-folder-{key}.parquet"
    expected = {"format": _FORMAT, "root": os.path.realpath(root), "split": split, "classes": list(classes)}
    kept = None if cache is None else _read(cache, name, expected, root)
    if kept is not None:
        return kept
    began = time.time_ns()
    times: dict[str, int] = {}
    _modified(root, split, times)
    index = ImageIndex.of_classes(_walk(root, f"{split}/{label}", times) for label in classes)
    if cache is not None and max(times.values()) < began - _COARSEST_CLOCK:
        _write(cache, name, {**expected, "folders": times}, index)
    return index


def _modified(root: Path, folder: str, times: dict[str, int]) -> bool:
    """Note the modification time of a folder; return whether it exists."""
    try:
        times[folder] = os.stat(root / folder).st_mtime_ns
    except FileNotFoundError:
        return False
    return True


def _walk(root: Path, start: str, times: dict[str, int]) -> list[str]:
    from torchvision.datasets.folder import is_image_file

    names, folders = [], [start]
    while folders:
        folder = folders.pop()
        if not _modified(root, folder, times):  # before it is listed: a change meanwhile is noticed the next time
            continue
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{folder}/{entry.name}")
                elif is_image_file(entry.name):
                    names.append(f"{folder}/{entry.name}")
    return names


def _read(cache: str, name: str, expected: Mapping[str, Any], root: Path) -> ImageIndex | None:
    try:
        files = RunDirectory(cache)
        table = files.read_table(name) if files.exists(name) else None
        if table is None:
            return None
        described = json.loads(table.schema.metadata[b"index"])
        times = described.pop("folders")
        if described != expected or any(os.stat(root / folder).st_mtime_ns != time for folder, time in times.items()):
            return None
        names, labels = table.column("name"), table.column("label")
        return ImageIndex(pa.concat_arrays(names.chunks), labels.to_numpy().astype(np.int32))
    except (ArtifactError, OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None  # foreign, damaged or out of date: it is replaced


def _write(cache: str, name: str, described: Mapping[str, Any], index: ImageIndex) -> None:
    table = pa.table({"name": index.names, "label": index.labels})
    try:
        RunDirectory(cache).write_table(name, table.replace_schema_metadata({"index": json.dumps(described)}))
    except ArtifactError:
        return  # an index is a convenience: the next process lists the folders itself
