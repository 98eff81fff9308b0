"""Counts of finished and remaining work: trials of a sweep, shards of a pass over samples, epochs of a training."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cleanai_ray.storage import schemas
from cleanai_ray.storage.durations import format_seconds
from cleanai_ray.storage.ranking import rank
from cleanai_ray.storage.status import format_pace, format_score


@dataclass
class SweepState:
    """Counts of trials, and the best so far.

    Attributes:
        total: Trials to run, without those that were complete before.
        workers: The most trials that run at a time.
        running: Trials that are running now.
        done: Trials that succeeded.
        failed: Trials that failed.
        best_row: Row of the best trial so far; None before one has ended.
        clock: Returns a time in seconds.
    """

    total: int
    workers: int
    running: int = 0
    done: int = 0
    failed: int = 0
    best_row: dict[str, Any] | None = None
    clock: Callable[[], float] = time.monotonic
    _seconds: list[float] = field(default_factory=list)
    _estimate: tuple[float, float] | None = None

    def finish(self, row: dict[str, Any]) -> None:
        """Count a trial that ended; its `seconds_total`, where it is known, is the pace of those to come."""
        if row["status"] != schemas.OK:
            self.failed += 1
        else:
            self.done += 1
            self.consider(row)
        self._ended(row.get("seconds_total"))

    def finish_unseen(self) -> None:
        """Count a trial that succeeded, of which no more is known here."""
        self.done += 1
        self._ended(None)

    def _ended(self, seconds: float | None) -> None:
        """Estimate the seconds that are left from now on: the mean of a trial, times those left, by those at a time."""
        if seconds is not None:
            self._seconds.append(seconds)
        left = self.total - self.done - self.failed
        if left <= 0:
            self._estimate = (self.clock(), 0.0)
        elif self._seconds:
            mean = sum(self._seconds) / len(self._seconds)
            self._estimate = (self.clock(), mean * left / max(1, min(self.workers, left)))

    def consider(self, row: dict[str, Any]) -> None:
        """Make a trial the best one if it ranks first, by `storage.ranking.rank`, and is no control."""
        if row.get("control") is not None:
            return
        if self.best_row is None or rank(row) < rank(self.best_row):
            self.best_row = row

    @property
    def best(self) -> str:
        """Identifier of the best trial so far; "" before one has ended."""
        return "" if self.best_row is None else self.best_row["trial_id"]

    @property
    def best_accuracy(self) -> float:
        """Accuracy of the best trial so far, or what else its task compares; -1 before one has ended."""
        return -1.0 if self.best_row is None else self.best_row["accuracy"]

    def _best_score(self) -> str:
        row = self.best_row or {}
        return format_score(row.get("metric"), row.get("score"), self.best_accuracy)

    def _samples(self) -> str:
        return "images" if (self.best_row or {}).get("metric") in (None, "accuracy") else "samples"

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds left: it falls with the clock until the next trial ends; None before the first has ended.

        It is also None as long as no trial that ended has told how long it took.
        """
        if self._estimate is None:
            return None
        since, seconds = self._estimate
        return max(0.0, seconds - (self.clock() - since))

    @property
    def counts(self) -> tuple[int, ...]:
        """What changes where there is news to tell."""
        return self.done, self.running, self.failed, self.total

    def describe(self) -> str:
        """Return the state as one line."""
        left = self.seconds_left
        parts = [
            f"{self.done} done",
            f"{self.running} running",
            f"{self.failed} failed",
            f"of {self.total}",
            f"best {self._best_score()} on all scored {self._samples()} ({self.best})" if self.best else "best -",
            f"{format_seconds(left)} left" if left is not None else "time left unknown",
        ]
        return ", ".join(parts)


@dataclass
class ShardState:
    """Counts of shards in one pass over them.

    The pace is measured from the first finished shard on, because actors start before it.

    Attributes:
        total: Shards of the pass.
        done: Shards that are done.
        samples: Samples that were read; 0 if they are not counted.
        clock: Returns a time in seconds.
    """

    total: int
    done: int = 0
    samples: int = 0
    clock: Callable[[], float] = time.monotonic
    _first: tuple[float, int, int] | None = None

    def advance(self, done: int, total: int, samples: int = 0) -> None:
        """Record the shards done, the total, and the samples that were read for the last one."""
        self.done, self.total, self.samples = done, total, self.samples + samples
        if self._first is None and done:
            self._first = (self.clock(), done, self.samples)

    @property
    def samples_per_second(self) -> float | None:
        """Samples per second; None before the second shard is done, or if samples are not counted."""
        seconds, _, samples = self._pace()
        return samples / seconds if samples and seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds left, from the pace so far; None before the second shard is done, 0 after the last one."""
        if self.done and self.done == self.total:
            return 0.0
        seconds, done, _ = self._pace()
        return seconds / done * (self.total - self.done) if done > 0 else None

    @property
    def counts(self) -> tuple[int, ...]:
        """What changes where there is news to tell."""
        return self.done, self.total

    def _pace(self) -> tuple[float, int, int]:
        """Return the seconds since the first shard was done, and the shards done and samples read since then."""
        if self._first is None:
            return 0.0, 0, 0
        since, done, samples = self._first
        return self.clock() - since, self.done - done, self.samples - samples

    def describe(self) -> str:
        """Return the state as one line."""
        pace, left = self.samples_per_second, self.seconds_left
        parts = [
            f"{self.done} of {self.total} shards",
            *([] if pace is None else [format_pace(pace)]),
            f"{format_seconds(left)} left" if left is not None else "time left unknown",
        ]
        return ", ".join(parts)


@dataclass
class EpochState:
    """Counts of the epochs of the dense model's training.

    Attributes:
        done: Epochs that have ended, those before an interruption included.
        total: Epochs of the training; it may end sooner.
        metric: Name of the validation score.
        score: The validation score after the last epoch, in its own units.
        clock: Returns a time in seconds.
    """

    done: int = 0
    total: int = 0
    metric: str = ""
    score: float = float("nan")
    clock: Callable[[], float] = time.monotonic
    _first: tuple[float, int] | None = None

    def advance(self, done: int, total: int, metric: str, score: float) -> None:
        """Record the epochs done, the total, and the name and value of the last validation score."""
        self.done, self.total, self.metric, self.score = done, total, metric, score
        if self._first is None:
            self._first = (self.clock(), done)

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds left, from the epochs since the first that was recorded; None before there is another."""
        if self._first is None or self.done <= self._first[1]:
            return None
        since, before = self._first
        return (self.clock() - since) / (self.done - before) * (self.total - self.done)

    def describe(self) -> str:
        """Return the state as one line."""
        left = self.seconds_left
        return ", ".join(
            [
                f"epoch {self.done} of {self.total}",
                f"validation {_told_score(self.metric, self.score)}",
                f"{format_seconds(left)} left" if left is not None else "time left unknown",
            ]
        )


def _told_score(metric: str, score: float) -> str:
    return f"accuracy {score:.2%}" if metric == "accuracy" else format_score(metric, score, None)
