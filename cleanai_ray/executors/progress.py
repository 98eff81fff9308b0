"""Progress of a study: a live line in a terminal, plain lines elsewhere, and a watcher that is told the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from cleanai_ray.evaluation.accuracy import Accuracy
from cleanai_ray.executors.counts import ShardState, SweepState
from cleanai_ray.storage.status import format_seconds

__all__ = ["ProgressReporter", "ShardState", "SweepState", "Watcher", "format_seconds"]

_PLAIN_INTERVAL = 10.0
OnShard = Callable[..., None]


class Watcher(Protocol):
    """Hears of every change in a study's progress, in the thread that runs the study."""

    def stage(self, name: str) -> None:
        """A stage begins."""

    def dense(self, accuracy: float) -> None:
        """The dense model has this accuracy."""

    def shards(self, state: ShardState) -> None:
        """Shards of the stage are done."""

    def sweep(self, state: SweepState) -> None:
        """Trials began or ended."""

    def complete(self, state: SweepState) -> None:
        """Trials were complete before this run: the state counts them as done."""


class ProgressReporter:
    """Prints the progress of a study, and passes it on to a watcher.

    Args:
        console: Where to print; live where it is a terminal.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._last_line = 0.0
        self._watcher: Watcher | None = None
        self._stage = ""
        self._before: list[dict[str, Any]] = []

    def watch(self, watcher: Watcher | None) -> None:
        """Pass everything on to a watcher from now on; to none with None."""
        self._watcher = watcher

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Print that a stage begins, and at its end how long it took."""
        self.say(f"{name} ...")
        self._begin(name)
        started = time.monotonic()
        yield
        self.say(f"{name}: {format_seconds(time.monotonic() - started)}")

    def dense(self, accuracy: Accuracy) -> None:
        """Print the score of the dense model."""
        self.say(f"dense accuracy: {accuracy.accuracy:.2%} of {accuracy.num_samples} images")
        if self._watcher is not None:
            self._watcher.dense(accuracy.accuracy)

    def complete(self, rows: Iterable[dict[str, Any]], total: int) -> None:
        """Print how many trials were complete before this run; the best of them is the best so far.

        Args:
            rows: Their rows of results.parquet.
            total: Trials of the study.
        """
        self._before = list(rows)
        state = SweepState(total=total, workers=0)
        for row in self._before:
            state.finish(row)
        if self._before:
            self.say(f"{len(self._before)} of {total} trials were complete already")
        if self._watcher is not None:
            self._watcher.complete(state)

    @contextmanager
    def shards(self, name: str, num_shards: int) -> Iterator[OnShard]:
        """Yield `on_shard(done, total, samples=0)`, to call whenever a shard is done.

        Its arguments are the number of shards done so far, the number of all shards, and the number of samples that
        were read for this one.

        Args:
            name: The name of the pass, in a word or two.
            num_shards: Shards of the pass.
        """
        state = ShardState(total=num_shards)
        if name != self._stage:
            self._begin(name)

        def tell() -> None:
            if self._watcher is not None:
                self._watcher.shards(state)

        tell()
        with self._counted(name, state, lambda: (state.done, state.total)) as refresh:

            def on_shard(done: int, total: int, samples: int = 0) -> None:
                state.advance(done, total, samples)
                tell()
                refresh()

            yield on_shard

    @contextmanager
    def sweep(self, state: SweepState) -> Iterator[Callable[[], None]]:
        """Yield a function to call when the state has changed."""
        for row in self._before:
            state.consider(row)
        self._begin("trials")

        def tell() -> None:
            if self._watcher is not None:
                self._watcher.sweep(state)

        tell()
        with self._counted("trials", state, lambda: (state.done + state.failed, state.total)) as refresh:

            def changed() -> None:
                tell()
                refresh()

            yield changed
        if not self.console.is_terminal:
            self.say(f"trials: {state.describe()}")

    def _begin(self, stage: str) -> None:
        self._stage = stage
        if self._watcher is not None:
            self._watcher.stage(stage)

    @contextmanager
    def _counted(
        self, name: str, state: SweepState | ShardState, counts: Callable[[], tuple[int, int]]
    ) -> Iterator[Callable[[], None]]:
        """Yield a function that shows the state: a bar in a terminal, a line every ten seconds elsewhere."""
        if not self.console.is_terminal:
            yield lambda: self._say_state(name, state)
            return
        bar = Progress(
            TextColumn(name), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), console=self.console
        )
        task = bar.add_task(state.describe(), total=counts()[1])

        def refresh() -> None:
            done, total = counts()
            bar.update(task, completed=done, total=total, description=state.describe())

        with Live(bar, console=self.console, refresh_per_second=4):
            yield refresh

    def _say_state(self, name: str, state: SweepState | ShardState) -> None:
        now = time.monotonic()
        if now - self._last_line >= _PLAIN_INTERVAL:
            self._last_line = now
            self.say(f"{name}: {state.describe()}")
