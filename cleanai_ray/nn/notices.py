"""Notices: what a user must be told about a piece of work that went on in another way than asked."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_LOG = logging.getLogger(__name__)
_logged: set[str] = set()


class Notices(list[str]):
    """The warnings that were given, in their order; `information` holds the notes that are no warnings."""

    def __init__(self) -> None:
        super().__init__()
        self.information: list[str] = []


_collected: ContextVar[Notices | None] = ContextVar("collected", default=None)


def remark(text: str) -> None:
    """Log a line the first time: what a user should know, and need not be warned of in a report."""
    if text not in _logged:
        _logged.add(text)
        _LOG.warning("%s", text)


def notice(text: str) -> None:
    """Log a warning the first time, and add it to those that the surrounding `collected_notices` collects, once."""
    remark(text)
    found = _collected.get()
    if found is not None and text not in found:
        found.append(text)


def inform(text: str) -> None:
    """Log a line the first time, and add it to the information that is collected: it cannot hurt the result."""
    remark(text)
    found = _collected.get()
    if found is not None and text not in found.information:
        found.information.append(text)


@contextmanager
def collected_notices() -> Iterator[Notices]:
    """Yield a list to which every notice inside is added; an outer list does not get them."""
    found = Notices()
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)
