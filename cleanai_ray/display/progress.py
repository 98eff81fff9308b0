"""Progress of a call: a line in a terminal or a notebook with the stage, and the batches that were read for it.

A function that the user calls is decorated with `with_progress`. What that calls names stages and counts steps on
the line that is `current`, or has a line count items by `watched`; nothing happens where no line is shown.
"""

from __future__ import annotations

import functools
import importlib.util
import operator
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_Call = TypeVar("_Call", bound=Callable[..., Any])
_Item = TypeVar("_Item")


class ProgressLine:
    """One line of progress: the stage that runs, what is counted in it, and the time that it took.

    Args:
        progress: Where it is shown; None: nowhere.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None) if progress else None

    def __bool__(self) -> bool:
        """Return whether it is shown."""
        return self._progress is not None

    def begin(self, stage: str, total: int | None = None) -> None:
        """Show another stage, of a number of steps if that is known."""
        if self._progress is not None and self._task is not None:
            self._progress.reset(self._task, description=stage, total=total)

    def rename(self, stage: str) -> None:
        """Show other words for the stage that runs."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, description=stage)

    def advance(self) -> None:
        """Count one step."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task)


_HIDDEN = ProgressLine()
_SHOWN: ContextVar[ProgressLine] = ContextVar("_SHOWN", default=_HIDDEN)


def with_progress(stage: str) -> Callable[[_Call], _Call]:
    """Return a decorator of a function with an argument `progress`, which shows a line while the function runs.

    True shows it, False does not, and None (the default) does in a terminal, and in a notebook that has ipywidgets.

    Args:
        stage: The first stage.
    """

    def decorate(function: _Call) -> _Call:
        @functools.wraps(function)
        def call(*args: Any, progress: bool | None = None, **options: Any) -> Any:
            with shown(stage, progress):
                return function(*args, **options)

        return cast("_Call", call)

    return decorate


@contextmanager
def shown(stage: str, progress: bool | None, console: Console | None = None) -> Iterator[None]:
    """Show a line within the context, unless one is shown already.

    Args:
        stage: The first stage.
        progress: As for `with_progress`.
        console: Where to show it; by default the standard error.
    """
    if progress is False or current() or (progress is None and console is None and not _may_be_watched()):
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = console or Console(stderr=True)
    if progress is None and not _is_watched(console):
        yield
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        line = ProgressLine(bar)
        line.begin(stage)
        token = _SHOWN.set(line)
        try:
            yield
        finally:
            _SHOWN.reset(token)


def _may_be_watched() -> bool:
    """Return whether it is worth asking rich, which takes a moment to load."""
    return sys.stderr.isatty() or "IPython" in sys.modules or bool({"FORCE_COLOR", "TTY_INTERACTIVE"} & set(os.environ))


def _is_watched(console: Console) -> bool:
    """Return whether a person watches: a terminal, or a notebook in which a line can be replaced."""
    if console.is_jupyter:
        return importlib.util.find_spec("ipywidgets") is not None
    return console.is_interactive


def current() -> ProgressLine:
    """Return the line of this thread, for instance to count in another one; it is hidden where none is shown."""
    return _SHOWN.get()


def watched(stage: str, items: Iterable[_Item]) -> Iterable[_Item]:
    """Return items that count themselves on the line while they are read; those of an iterator are an iterator.

    Each reading begins a stage, with as many steps as there are items.

    Args:
        stage: Its name.
        items: Batches, for instance.
    """
    line = current()
    if not line:
        return items
    return _counted(line, stage, items) if isinstance(items, Iterator) else _Watched(line, stage, items)


def _counted(line: ProgressLine, stage: str, items: Iterable[_Item]) -> Iterator[_Item]:
    total = operator.length_hint(items, -1)  # -1: a generator, or a loader without a length
    line.begin(stage, total if total >= 0 else None)
    for item in items:
        yield item
        line.advance()


class _Watched(Iterable[_Item]):
    def __init__(self, line: ProgressLine, stage: str, items: Iterable[_Item]) -> None:
        self._line, self._stage, self._items = line, stage, items

    def __iter__(self) -> Iterator[_Item]:
        return _counted(self._line, self._stage, self._items)
