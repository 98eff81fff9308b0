"""Progress of a study: a live line in a terminal, plain lines elsewhere, and the same for a watcher."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from cleanai_ray.analysis.numbers import plural
from cleanai_ray.executors.counts import EpochState, ShardState, SweepState
from cleanai_ray.storage.durations import format_seconds
from cleanai_ray.tasks.base import Score

__all__ = ["ProgressReporter", "ShardState", "SweepState", "Watcher"]

_PLAIN_INTERVAL, _UNCHANGED_INTERVAL = 10.0, 60.0
"""Least seconds between lines where there is no terminal: with other counts than the line before, and with the same."""

OnShard = Callable[..., None]


class Watcher(Protocol):
    """Is notified of every change in a study's progress, in the thread that runs the study."""

    def stage(self, name: str) -> None:
        """Note that a stage begins."""

    def dense(self, score: Score) -> None:
        """Note the score of the dense model."""

    def shards(self, state: ShardState) -> None:
        """Note the shards that are done."""

    def epochs(self, state: EpochState) -> None:
        """Note the epochs of the dense model's training that have ended; from a thread of its own."""

    def sweep(self, state: SweepState) -> None:
        """Note that trials began or ended."""

    def complete(self, state: SweepState) -> None:
        """Note the trials that were complete before this run; the state counts them as done."""


class ProgressReporter:
    """Prints the progress of a study, and notifies a watcher of it.

    Args:
        console: Where to print; a terminal gets live lines.
        clock: Returns a time in seconds.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._clock = clock
        self._last_line: tuple[float, tuple[object, ...]] | None = None
        self._watcher: Watcher | None = None
        self._stage = ""
        self._complete_before: list[dict[str, Any]] = []

    def watch(self, watcher: Watcher | None) -> None:
        """Notify this watcher from now on; None stops it."""
        self._watcher = watcher

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Print that a stage begins, and when it ends, how long it took."""
        self.say(f"{name} ...")
        self._begin(name)
        started = time.monotonic()
        yield
        self.say(f"{name}: {format_seconds(time.monotonic() - started)}")

    def dense(self, score: Score) -> None:
        """Print the score of the dense model."""
        if score.metric_name == "accuracy":
            self.say(f"dense accuracy: {score.value:.2%} of {plural(score.num_samples, 'image')}")
        else:
            self.say(f"dense {score.metric_name}: {score.value:.4g} of {plural(score.num_samples, 'sample')}")
        if self._watcher is not None:
            self._watcher.dense(score)

    def epochs(self, state: EpochState) -> None:
        """Print how far the dense model's training is."""
        self.say(f"{self._stage}: {state.describe()}")
        if self._watcher is not None:
            self._watcher.epochs(state)

    def complete(self, rows: Iterable[dict[str, Any]], total: int) -> None:
        """Print how many trials were complete before this run; they count when the best so far is chosen.

        Args:
            rows: Their rows of results.parquet.
            total: Trials of the study.
        """
        self._complete_before = list(rows)
        state = SweepState(total=total, workers=0)
        for row in self._complete_before:
            state.finish(row)
        if self._complete_before:
            self.say(f"{len(self._complete_before)} of {total} trials were complete already")
        if self._watcher is not None:
            self._watcher.complete(state)

    @contextmanager
    def shards(self, name: str, num_shards: int) -> Iterator[OnShard]:
        """Yield `on_shard(done, total, samples=0)`, to be called whenever a shard is done.

        Its arguments are the shards done so far, all shards, and the samples that were read for this shard.

        Args:
            name: A short name of the pass.
            num_shards: Shards of the pass.
        """
        state = ShardState(total=num_shards)
        if name != self._stage:
            self._begin(name)

        def notify() -> None:
            if self._watcher is not None:
                self._watcher.shards(state)

        notify()
        with self._counted(name, state, lambda: (state.done, state.total)) as refresh:

            def on_shard(done: int, total: int, samples: int = 0) -> None:
                state.advance(done, total, samples)
                notify()
                refresh()

            yield on_shard

    @contextmanager
    def sweep(self, state: SweepState) -> Iterator[Callable[[], None]]:
        """Yield a function to be called whenever the state has changed."""
        for row in self._complete_before:
            state.consider(row)
        self._begin("trials")

        def notify() -> None:
            if self._watcher is not None:
                self._watcher.sweep(state)

        notify()
        with self._counted("trials", state, lambda: (state.done + state.failed, state.total)) as refresh:

            def changed() -> None:
                notify()
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
        """Yield a function that shows the state: a bar in a terminal, a line now and then elsewhere."""
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
        now, counts = self._clock(), (name, *state.counts)
        if self._last_line is not None:
            then, before = self._last_line
            if now - then < (_UNCHANGED_INTERVAL if counts == before else _PLAIN_INTERVAL):
                return
        self._last_line = now, counts
        self.say(f"{name}: {state.describe()}")
