"""A run directory on any pyarrow filesystem. Files are written whole or not at all, and completion markers last."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from cleanai_ray.errors import ArtifactError
from cleanai_ray.storage.whole_files import is_temporary, replaced_whole

PLAN_FILE, WEIGHTS_FILE = "plan.json", "weights.safetensors"
"""The files of a pruned model."""

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://")
_MARKER = ".done"
_MOST_READINGS = 5


def resolve_filesystem(location: str | os.PathLike[str]) -> tuple[fs.FileSystem, str]:
    """Return the filesystem of a folder or URL, and the path on it.

    Args:
        location: A folder, or a URL of any pyarrow filesystem: `s3://bucket/prefix`, `gs://`, `file://`. An S3 URL may
            add `?region=...&endpoint_override=host:port&scheme=http`; credentials come from the environment.

    Raises:
        ArtifactError: When the URL's scheme is not one that pyarrow knows.
    """
    text = os.fspath(location)
    if not _URL.match(text):
        return fs.LocalFileSystem(), str(Path(text).expanduser().absolute())
    try:
        return fs.FileSystem.from_uri(text)
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(f"'{text}' is not a folder or a URL of a filesystem that pyarrow opens: {error}") from error


class RunDirectory:
    """The files of one study.

    Args:
        location: A folder or URL, as for `resolve_filesystem`. A copy in another process opens a URL again, with the
            credentials in that process's environment.

    Raises:
        ArtifactError: When the location is not a folder or URL. Every method raises it when the filesystem fails.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        self.location = os.fspath(location)
        self._filesystem, self._root = resolve_filesystem(location)
        self._root = self._root.rstrip("/")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.location if _URL.match(self.location) else self._root,)

    @property
    def is_local(self) -> bool:
        """True if the directory is on this machine's own filesystem."""
        return isinstance(self._filesystem, fs.LocalFileSystem)

    def local_path(self, name: str = "") -> Path:
        """Return the path of a file on this machine.

        Raises:
            ArtifactError: When the run directory is not on a local filesystem.
        """
        if not self.is_local:
            raise ArtifactError(f"'{self.location}' is not a local folder")
        return Path(self._path(name))

    def storage(self, name: str = "") -> tuple[str, fs.FileSystem | None]:
        """Return the path of a folder and its filesystem, or None for this machine's own filesystem."""
        return self._path(name), None if self.is_local else self._filesystem

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    @contextmanager
    def _reaching(self, name: str, deed: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise ArtifactError(f"'{name}' is not in run directory '{self.location}'") from error
        except OSError as error:
            reason = " ".join(str(error).split())
            raise ArtifactError(f"'{name}' in run directory '{self.location}' cannot be {deed}: {reason}") from error

    def _info(self, name: str) -> fs.FileInfo:
        with self._reaching(name, "looked for"):
            return self._filesystem.get_file_info(self._path(name))

    def exists(self, name: str = "") -> bool:
        """Return whether a file or folder of this name exists."""
        return self._info(name).type != fs.FileType.NotFound

    def list(self, folder: str) -> list[str]:
        """Return the sorted names of the files and folders directly in a folder; none if it does not exist.

        Temporary files that an interrupted write left behind are not among them.
        """
        selector = fs.FileSelector(self._path(folder), allow_not_found=True)
        with self._reaching(folder, "listed"):
            names = [info.base_name for info in self._filesystem.get_file_info(selector)]
        return sorted(name for name in names if not is_temporary(name))

    def delete(self, name: str) -> None:
        """Delete a file or folder, if it exists."""
        info = self._info(name)
        with self._reaching(name, "deleted"):
            if info.type == fs.FileType.Directory:
                self._filesystem.delete_dir(info.path)
            elif info.type == fs.FileType.File:
                self._filesystem.delete_file(info.path)

    def move(self, name: str, target: str) -> None:
        """Move a file with its completion marker, or a folder, to another name."""
        for source, place in ((name, target), (f"{name}{_MARKER}", f"{target}{_MARKER}")):
            if not self.exists(source):
                continue
            if self.is_local:
                with self._reaching(source, "moved"):
                    self._filesystem.create_dir(str(Path(self._path(place)).parent))
                    self._filesystem.move(self._path(source), self._path(place))
            else:
                self.copy(source, place)
                self.delete(source)

    def copy(self, name: str, target: str) -> None:
        """Copy a file or folder to another name."""
        source, place = self._info(name), self._path(target)
        with self._reaching(name, "copied"):
            if self.is_local:  # an object store has no folders
                is_folder = source.type == fs.FileType.Directory
                self._filesystem.create_dir(place if is_folder else str(Path(place).parent))
            fs.copy_files(
                source.path, place, source_filesystem=self._filesystem, destination_filesystem=self._filesystem
            )

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file whole: under a temporary name that is then changed, or on an object store in one put.

        The file's completion marker, if it has one, is deleted first, since it vouches for the old content.
        """
        buffer = pa.py_buffer(content)  # fails on anything but bytes, before a file is touched
        if not name.endswith(_MARKER):
            self.delete(f"{name}{_MARKER}")
        with self._reaching(name, "written"):
            if self.is_local:
                with replaced_whole(Path(self._path(name))) as temporary:
                    temporary.write_bytes(content)
            else:
                with self._filesystem.open_output_stream(self._path(name)) as stream:
                    stream.write(buffer)

    def read_bytes(self, name: str) -> bytes:
        """Read a file.

        Raises:
            ArtifactError: When there is none, or it cannot be read.
        """
        with self._reaching(name, "read"), self._filesystem.open_input_file(self._path(name)) as stream:
            return stream.read()

    def write_text(self, name: str, text: str) -> None:
        """Write a UTF-8 file, like `write_bytes`."""
        self.write_bytes(name, text.encode())

    def read_text(self, name: str) -> str:
        """Read a UTF-8 file.

        Raises:
            ArtifactError: When there is none, or it is not UTF-8.
        """
        try:
            return self.read_bytes(name).decode()
        except UnicodeDecodeError as error:
            raise ArtifactError(f"'{name}' in run directory '{self.location}' is not UTF-8: {error}") from error

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file."""
        self.write_text(name, json.dumps(value, indent=2, sort_keys=True) + "\n")

    def read_json(self, name: str) -> Any:
        """Read a JSON file.

        If the file is replaced meanwhile, an object store may return the length of one version and the content of
        another, so content that is not JSON is read again there.

        Raises:
            ArtifactError: When there is none, or it is not JSON.
        """
        num_readings = 0
        while True:
            num_readings += 1
            try:
                return json.loads(self.read_bytes(name))
            except ValueError as error:  # not JSON, or not UTF-8
                if self.is_local or num_readings == _MOST_READINGS:
                    raise ArtifactError(f"'{name}' in run directory '{self.location}' is not JSON: {error}") from error

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a Parquet file."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write_bytes(name, sink.getvalue().to_pybytes())

    def read_table(self, name: str) -> pa.Table:
        """Read a Parquet file.

        Raises:
            ArtifactError: When there is none, or it is not Parquet.
        """
        try:
            return pq.read_table(pa.BufferReader(self.read_bytes(name)))
        except (pa.ArrowException, OSError) as error:
            raise ArtifactError(f"'{name}' in run directory '{self.location}' is not Parquet: {error}") from error

    def mark(self, name: str, inputs: str) -> None:
        """Mark an output as complete, for inputs with this digest. Called last."""
        self.write_json(f"{name}{_MARKER}", {"inputs": inputs})

    def is_complete(self, name: str, inputs: str) -> bool:
        """Return whether an output was completed from inputs with this digest."""
        marker = f"{name}{_MARKER}"
        return self.exists(marker) and self.read_json(marker).get("inputs") == inputs
