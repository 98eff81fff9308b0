"""Seconds that a trial spends, by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class TrialClock:
    """Adds up the seconds of each stage, from when it was made.

    Attributes:
        started: When it was made.
        seconds: Seconds by stage.
    """

    started: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count what happens inside towards a stage."""
        begun = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun

    def branch(self) -> TrialClock:
        """Return a clock that has all stages so far behind it, and nothing else that took time since."""
        return TrialClock(started=time.perf_counter() - sum(self.seconds.values()), seconds=dict(self.seconds))

    def columns(self) -> dict[str, float]:
        """Return the columns of results.parquet that say what took how long."""
        total = time.perf_counter() - self.started
        return {"seconds_total": total, **{f"seconds_{name}": value for name, value in self.seconds.items()}}
