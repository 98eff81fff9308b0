"""Notices: what a user must be told about a piece of work that went on in another way than asked."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_LOG = logging.getLogger(__name__)
_logged: set[str] = set()
_collected: ContextVar[list[str] | None] = ContextVar("collected", default=None)


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


@contextmanager
def collected_notices() -> Iterator[list[str]]:
    """Yield a list to which every notice inside is added; an outer list does not get them."""
    found: list[str] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)
