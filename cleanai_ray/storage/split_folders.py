"""The folders of the splits of a data set of image files, looked at without opening an image."""

from __future__ import annotations

from pyarrow import fs

from cleanai_ray.errors import DataError
from cleanai_ray.storage.run_directory import resolve_filesystem

SPLITS = ("train", "val", "validation", "test")
"""Names of the folders of splits."""

HELD_OUT = "crc32/5"
"""How images are held out where there is no split: those whose checksum of the name is a multiple of five."""


def held_out_rule(root: str | None) -> str | None:
    """Return `HELD_OUT` if images have to be held out: there is a folder, and nothing to score on but its `train/`.

    Raises:
        DataError: When the store cannot be asked.
    """
    if root is None:
        return None
    try:
        filesystem, path = resolve_filesystem(root)
        path = path.rstrip("/")
        listed, *scored = ("food-101/meta", *SPLITS[1:])
        names = ["", listed, "meta", "images", *scored]
        found = filesystem.get_file_info([f"{path}/{name}".rstrip("/") for name in names])
    except OSError as error:
        raise DataError(f"data.root '{root}' cannot be opened: {' '.join(str(error).split())}") from error
    is_there = {name: info.type == fs.FileType.Directory for name, info in zip(names, found, strict=True)}
    has_lists = is_there[listed] or (is_there["meta"] and is_there["images"])
    return None if not is_there[""] or has_lists or any(is_there[name] for name in scored) else HELD_OUT
