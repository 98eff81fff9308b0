"""What a study tells while it runs: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

_PLAIN_INTERVAL = 10.0


@dataclass
class SweepState:
    """Counts of trials, and the best so far.

    Attributes:
        total: Trials to run, without those that were complete before.
        workers: Trials that run at a time, at the most.
    """

    total: int
    workers: int
    running: int = 0
    done: int = 0
    failed: int = 0
    best: str = ""
    best_accuracy: float = -1.0
    started: float = field(default_factory=time.monotonic)

    def finish(self, row: dict[str, Any]) -> None:
        """Count a trial that ended."""
        if row["status"] != "ok":
            self.failed += 1
            return
        self.done += 1
        if row["accuracy"] > self.best_accuracy:
            self.best_accuracy, self.best = row["accuracy"], row["trial_id"]

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds left, from the pace so far; None before the first trial ended."""
        ended = self.done + self.failed
        if not ended:
            return None
        return (time.monotonic() - self.started) / ended * (self.total - ended)

    def describe(self) -> str:
        """Return the state in a line."""
        left = self.seconds_left
        parts = [
            f"{self.done} done",
            f"{self.running} running",
            f"{self.failed} failed",
            f"of {self.total}",
            f"best {self.best_accuracy:.2%} ({self.best})" if self.best else "best -",
            f"{format_seconds(left)} left" if left is not None else "time left unknown",
        ]
        return ", ".join(parts)


def format_seconds(seconds: float) -> str:
    """Return a duration as `45 s`, `3 min 20 s` or `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Narrator:
    """Prints the course of a study.

    Args:
        console: Where to print; live where it is a terminal.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._last_line = 0.0

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(text, markup=False)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Print that a stage begins, and how long it took."""
        self.say(f"{name} ...")
        started = time.monotonic()
        yield
        self.say(f"{name}: {format_seconds(time.monotonic() - started)}")

    @contextmanager
    def sweep(self, state: SweepState) -> Iterator[Any]:
        """Yield a function to call when the state has changed."""
        if not self.console.is_terminal:
            yield lambda: self._say_state(state)
            self.say(f"trials: {state.describe()}")
            return
        bar = Progress(TextColumn("trials"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        task = bar.add_task(state.describe(), total=state.total)
        with Live(bar, console=self.console, refresh_per_second=4):
            yield lambda: bar.update(task, completed=state.done + state.failed, description=state.describe())

    def _say_state(self, state: SweepState) -> None:
        now = time.monotonic()
        if now - self._last_line >= _PLAIN_INTERVAL:
            self._last_line = now
            self.say(f"trials: {state.describe()}")
