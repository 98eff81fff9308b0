"""The parts of a report, each of which may fail alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from cleanai_ray.errors import ReportError

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
_NAMED = 3
"""The most parts with one reason that a message names."""


class Parts:
    """Makes the parts of a report, and remembers which of them could not be made."""

    def __init__(self) -> None:
        self._failed: dict[str, list[str]] = {}

    def make(self, name: str, make: Callable[[], T]) -> T | None:
        """Return what a function returns; None if it raises, which is remembered under the part's name."""
        try:
            return make()
        except Exception as error:  # a plug-in, a font or a library may raise anything
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
            _LOG.debug("a report lacks %s", name, exc_info=True)
            names = self._failed.setdefault(reason, [])
            if name not in names:
                names.append(name)
            return None

    def require_all(self, location: str) -> None:
        """Refuse to call a report complete if a part failed.

        Args:
            location: The run directory.

        Raises:
            ReportError: One sentence with every part that failed, and why.
        """
        if self._failed:
            lacks = "; and ".join(f"{_list(names)} ({reason})" for reason, names in self._failed.items())
            raise ReportError(
                f"the report lacks {lacks}; the tables and all else are in {location}, and `cleanai report {location}` "
                "makes the report again"
            )


def _list(names: list[str]) -> str:
    if len(names) > _NAMED + 1:
        names = [*names[:_NAMED], f"{len(names) - _NAMED} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
