"""The filesystem of a data set, opened in each process that reads it."""

from __future__ import annotations

import os
from typing import Any

from pyarrow import fs

from cleanai_ray.storage.run_directory import resolve_filesystem


class ProcessFilesystem:
    """A filesystem that every process opens for itself: clients of object stores survive neither pickling nor a fork.

    Args:
        location: A folder or URL, as `resolve_filesystem` takes it.
    """

    def __init__(self, location: str) -> None:
        self._location = location
        self._opened: tuple[int, fs.FileSystem] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_location": self._location, "_opened": None}

    @property
    def multiprocessing_context(self) -> str | None:
        """Start method that worker processes need; None: the usual one."""
        return None if isinstance(self.get(), fs.LocalFileSystem) else "forkserver"

    def get(self) -> fs.FileSystem:
        """Return this process's filesystem.

        Raises:
            ArtifactError: When the location is on no filesystem that pyarrow opens.
        """
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), resolve_filesystem(self._location)[0]
        return self._opened[1]
