"""The status of a running study, written to `status.json` in its run directory.

It is written whenever a stage begins, and in between by a thread of its own, so that a long stage does not look dead.
An executor may publish it elsewhere as well: on Ray's metrics port, for instance.
"""

from __future__ import annotations

import datetime
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from cleanai_ray.config.study import Study
from cleanai_ray.errors import ArtifactError
from cleanai_ray.executors.counts import EpochState, ShardState, SweepState
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.storage.status import HEARTBEAT, STATUS_FILE, StudyStatus, interrupted, utc_now
from cleanai_ray.tasks.base import Score

_LOG = logging.getLogger(__name__)


class StatusWriter:
    """Keeps a study's status, and writes it to a file.

    Changes are noted at once, and written when a stage begins, at the end, and every few seconds in between.

    Args:
        study: The study.
        run: Its run directory.
        publish: Called with every status that is written.
        interval: Seconds between two writes.
        started: When the run began, with the time zone; by default, now.
    """

    def __init__(
        self,
        study: Study,
        run: RunDirectory,
        *,
        publish: Callable[[StudyStatus], None] = lambda status: None,
        interval: float = HEARTBEAT,
        started: datetime.datetime | None = None,
    ) -> None:
        self._run = run
        self._publish = publish
        self._interval = interval
        self._status = StudyStatus(
            study=study.name,
            state="running",
            stage="start",
            trials_total=len(study.trials()),
            started=started or utc_now(),
            updated=utc_now(),
        )
        self._changing, self._writing = threading.Lock(), threading.Lock()
        self._ended = threading.Event()
        self._write_failed = self._publish_failed = False
        self._thread = threading.Thread(target=self._beat, name=f"watching-{study.name}", daemon=True)

    def start(self) -> None:
        """Write the first status, and start writing it regularly."""
        self._write()
        self._thread.start()

    def end(self, state: Literal["finished", "failed"], error: str = "") -> None:
        """Write the last status; nothing is written after it."""
        self._ended.set()
        self._thread.join()
        self._change(state=state, error=error, trials_running=0, seconds_left=None, samples_per_second=None)
        self._write()

    def stage(self, name: str) -> None:
        """Write that a stage begins."""
        unknown = ("shards_done", "shards_total", "epochs_done", "epochs_total", "samples_per_second", "seconds_left")
        self._change(stage=name, **dict.fromkeys(unknown))
        self._write()

    def dense(self, score: Score) -> None:
        """Note the score of the dense model."""
        has_own = score.metric_name != "accuracy" and math.isfinite(score.value)
        self._change(metric=score.metric_name, accuracy_dense=score.merit, score_dense=score.value if has_own else None)

    def shards(self, state: ShardState) -> None:
        """Note how many shards are done."""
        self._change(
            shards_done=state.done,
            shards_total=state.total,
            samples_per_second=state.samples_per_second,
            seconds_left=state.seconds_left,
        )

    def epochs(self, state: EpochState) -> None:
        """Note how many epochs of the dense model's training have ended."""
        self._change(epochs_done=state.done, epochs_total=state.total, seconds_left=state.seconds_left)

    def complete(self, state: SweepState) -> None:
        """Note the trials that were complete before."""
        self._change(trials_done=state.done, **_best(state))

    def sweep(self, state: SweepState) -> None:
        """Note the trials that run and have ended, including those that were complete before."""
        before = self._status.trials_total - state.total
        self._change(
            trials_done=before + state.done,
            trials_running=state.running,
            trials_failed=state.failed,
            seconds_left=state.seconds_left,
            **_best(state),
        )

    @property
    def seconds(self) -> float:
        """How long the run had lasted when its status was written last."""
        return (self._status.updated - self._status.started).total_seconds()

    def choose(self, row: Mapping[str, Any] | None) -> None:
        """Note the trial that a study chose, if any, with its score on the samples that it is reported on."""
        if row is None:
            return
        own_dense = row.get("score_dense")
        self._change(
            best=row["trial_id"],
            best_accuracy=row["accuracy"],
            best_score=row.get("score"),
            best_samples=row.get("num_test") or None,
            accuracy_dense=row["accuracy_dense"],
            score_dense=own_dense if own_dense is not None and math.isfinite(own_dense) else None,
        )

    def _change(self, **values: Any) -> StudyStatus:
        with self._changing:
            self._status = self._status.model_copy(update=values)
            return self._status

    def _beat(self) -> None:
        while not self._ended.wait(self._interval):
            self._write()

    def _write(self) -> None:
        with self._writing:
            status = self._change(updated=utc_now())
            try:
                self._run.write_json(STATUS_FILE, status.model_dump(mode="json"))
                self._write_failed = False
            except ArtifactError as error:
                # The study goes on without a status: log the first failure, and try again at the next beat.
                if not self._write_failed:
                    _LOG.warning("%s", error)
                self._write_failed = True
            try:
                self._publish(status)
            except Exception as error:  # monitoring that is away must not end the study
                if not self._publish_failed:
                    _LOG.warning("the status cannot be published: %s", error)
                self._publish_failed = True


def _best(state: SweepState) -> dict[str, Any]:
    if state.best_row is None:
        return {}
    metric = state.best_row.get("metric")
    named = {"metric": metric} if metric else {}
    score = state.best_row.get("score")
    return {"best": state.best, "best_accuracy": state.best_accuracy, "best_score": score, **named}


@contextmanager
def status_written(
    study: Study,
    run: RunDirectory,
    progress: ProgressReporter,
    publish: Callable[[StudyStatus], None] = lambda status: None,
    *,
    fresh: bool = False,
    started: datetime.datetime | None = None,
) -> Iterator[StatusWriter]:
    """Write the status of a study while the context lasts, from the progress reporter, and at the end how it ended.

    Args:
        study: The study.
        run: Its run directory.
        progress: Notified of the study's progress.
        publish: Called with every status that is written.
        fresh: True where the command has `--fresh`, and would not resume with it.
        started: When the run began, with the time zone; by default, now.
    """
    watcher = StatusWriter(study, run, publish=publish, started=started)
    watcher.start()
    progress.watch(watcher)
    try:
        yield watcher
    except BaseException as error:
        is_interrupted = isinstance(error, KeyboardInterrupt)
        watcher.end("failed", interrupted(fresh=fresh) if is_interrupted else _sentence(error))
        raise
    else:
        watcher.end("finished")
    finally:
        progress.watch(None)


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
