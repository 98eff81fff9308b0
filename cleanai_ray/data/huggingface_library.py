"""What is asked of the library `datasets`: the splits of a data set, and the columns of images and labels."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cleanai_ray.config.sections import DataSection
from cleanai_ray.errors import DataError

_EXPECTED = "a name on the hub, or a folder of Parquet or Arrow files, of images by class, or that save_to_disk wrote"
_SAVED = ("dataset_dict.json", "state.json")
"""Files that `save_to_disk` writes at the top: of several splits, of one."""


def one_line(error: Exception) -> str:
    """Return an exception's message as one line, without its full stop."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def load_splits(data: DataSection) -> dict[str, Any]:
    """Return the splits of a data set by name, each a `datasets.Dataset`.

    Raises:
        DataError: When the library is not installed, or when it finds or reads no such data set.
    """
    if data.path is None:
        raise DataError(f"data.path is null; expected {_EXPECTED}")
    if "://" in data.path:
        raise DataError(
            f"data.path is '{data.path}'; expected {_EXPECTED}; "
            "object stores are read by parquet_images and image_folder, with data.root"
        )
    revision = data.options.get("revision")
    if revision is not None and not re.fullmatch("[0-9a-f]{40}", revision):
        raise DataError(f"data.options.revision is '{revision}'; allowed: the 40 hexadecimal digits of a commit")
    library, folder = _library(), Path(data.path).expanduser()
    is_folder = folder.is_dir()
    if not is_folder and (data.path[0] in "/.~" or data.path.count("/") > 1):
        raise DataError(f"data.path '{data.path}' does not exist or is not a folder; expected {_EXPECTED}")
    try:
        with _quiet(library):
            found = _from_folder(library, folder, data) if is_folder else _from_hub(library, data)
    except Exception as error:  # it raises what pyarrow, fsspec and the hub's client raise, too
        reason = one_line(error)
        raise DataError(f"data.path '{data.path}' cannot be opened: {reason}; expected {_EXPECTED}") from error
    return dict(found) if isinstance(found, library.DatasetDict) else {str(found.split or "train"): found}


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "data set 'huggingface' needs the package datasets, which is not installed: "
            "pip install 'cleanai-ray[huggingface]'"
        ) from error
    return datasets


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Show the library's progress on a terminal only, and of its messages those about errors."""
    silent, verbosity = library.are_progress_bars_disabled(), library.logging.get_verbosity()
    library.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        library.disable_progress_bars()
    try:
        yield
    finally:
        library.logging.set_verbosity(verbosity)
        if not silent:
            library.enable_progress_bars()


def _from_folder(library: Any, folder: Path, data: DataSection) -> Any:
    if any((folder / name).is_file() for name in _SAVED):
        return library.load_from_disk(str(folder))
    options = data.options
    return library.load_dataset(str(folder), options.get("config"), cache_dir=options.get("cache_dir"))


def _from_hub(library: Any, data: DataSection) -> Any:
    """Return a data set from the library's cache, or else from the hub.

    Without the hub, the library takes any revision that is in the cache; the one that is asked for names its folder.
    """
    options = data.options
    revision = options.get("revision")
    arguments = {"name": options.get("config"), "revision": revision, "cache_dir": options.get("cache_dir")}
    was_offline = library.config.HF_HUB_OFFLINE
    try:
        library.config.HF_HUB_OFFLINE = True
        found = library.load_dataset(data.path, **arguments)
    except (OSError, ValueError):
        found = None
    finally:
        library.config.HF_HUB_OFFLINE = was_offline
    if found is None or not _is_revision(found, revision):
        found = library.load_dataset(data.path, **arguments)
    if not _is_revision(found, revision):
        raise OSError(f"the hub cannot be reached, and the cache holds another revision than {revision}")
    return found


def _is_revision(found: Any, revision: str | None) -> bool:
    splits = found.values() if isinstance(found, dict) else [found]
    files = [Path(file["filename"]) for rows in splits for file in rows.cache_files]
    return revision is None or all(file.parent.name == revision for file in files)


def find_columns(features: Mapping[str, Any], data: DataSection) -> tuple[str, str]:
    """Return the columns of images and of labels: those that the study names, or the only ones that can be.

    Images are a column of type `Image`, or of bytes; labels one of type `ClassLabel`, or of integers. Among several,
    the columns `image` and `label` are taken.

    Raises:
        DataError: When there are none or several, or the study names others.
    """
    return _image_column(features, data), _label_column(features, data)


def _image_column(features: Mapping[str, Any], data: DataSection) -> str:
    library = _library()
    named = [name for name, feature in features.items() if isinstance(feature, library.Image)]
    raw = [name for name, feature in features.items() if _holds_bytes(feature)]
    return _chosen("image", named or raw, [*named, *raw], data)


def _holds_bytes(feature: Any) -> bool:
    """Return whether a column holds encoded images without saying so: bytes, or a struct of them."""
    content = feature.get("bytes") if isinstance(feature, dict) else feature
    return getattr(content, "dtype", None) in ("binary", "large_binary")


def _label_column(features: Mapping[str, Any], data: DataSection) -> str:
    library = _library()
    named = [name for name, feature in features.items() if isinstance(feature, library.ClassLabel)]
    whole = [name for name, feature in features.items() if _holds_integers(feature) and name not in named]
    return _chosen("label", named or whole, [*named, *whole], data)


def _holds_integers(feature: Any) -> bool:
    return "int" in str(getattr(feature, "dtype", ""))


def _chosen(kind: str, likely: list[str], possible: list[str], data: DataSection) -> str:
    """Return the column that the study names, or the only likely one, or the one among several with the usual name."""
    option = f"data.options.{kind}_column"
    listed = ", ".join(possible) or "none in this data set"
    given = data.options.get(f"{kind}_column")
    if given is not None:
        if given not in possible:
            raise DataError(f"{option} is '{given}'; allowed with '{data.path}': {listed}")
        return given
    if kind in likely or len(likely) == 1:
        return kind if kind in likely else likely[0]
    number = "none" if not likely else "several"
    raise DataError(f"{option} is not given, and '{data.path}' has {number} that it could be; allowed: {listed}")


def rows_of(rows: Any, columns: tuple[str, str]) -> Any:
    """Return the two columns of a split as Python values, with images as they are stored: the library decodes none."""
    chosen = rows.with_format(None).select_columns(list(columns))
    return chosen.cast_column(columns[0], _library().Image(decode=False))


def class_names(splits: Mapping[str, Any], label: str) -> tuple[str, ...]:
    """Return the names of the classes; of integers, the numbers up to the highest in any split."""
    feature = next(iter(splits.values())).features[label]
    if isinstance(feature, _library().ClassLabel):
        return tuple(feature.names or map(str, range(feature.num_classes)))
    highest = max((max(rows.unique(label), default=-1) for rows in splits.values()), default=-1)
    return tuple(str(number) for number in range(highest + 1))
