"""Local files that are written whole or not at all."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TEMPORARY = re.compile(r"^\..+\.[0-9a-f]{32}\.tmp(\.[^.]+)?$")


@contextmanager
def replaced_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` on success and is deleted on failure.

    A process that dies meanwhile leaves the old file, and the temporary one beside it. The temporary path has the
    suffix of `path`, which some libraries ask for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def is_temporary(name: str) -> bool:
    """Return whether a file has a name that `replaced_whole` gives to temporary files."""
    return bool(_TEMPORARY.match(name))
