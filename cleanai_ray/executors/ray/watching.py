"""Where the course of a study can be watched from outside: `status.json` in its run directory, and Ray's metrics port.

The driver tells both at every stage that begins, and in between from a thread of its own, so that a stage that takes
long does not look dead. Ray shows each gauge as `ray_<name>` on the metrics port of the driver's node.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.util.metrics import Gauge

from cleanai_ray.config.study import Study
from cleanai_ray.errors import ArtifactError
from cleanai_ray.executors.ray.counts import ShardState, SweepState
from cleanai_ray.executors.ray.progress import Narrator
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.storage.status import HEARTBEAT, STATUS_FILE, StudyStatus, utc_now

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A gauge of a study.

    Attributes:
        description: What it counts, and in which unit.
        tags: Tags beside `study`.
    """

    description: str
    tags: tuple[str, ...] = ()


METRICS: Mapping[str, Metric] = {
    "cleanai_shards_done": Metric(description="Shards of the stage that are done."),
    "cleanai_shards": Metric(description="Shards of the stage."),
    "cleanai_samples_per_second": Metric(description="Samples a second that the stage gets through."),
    "cleanai_trials": Metric(description="Trials by state: done, running, failed, waiting.", tags=("state",)),
    "cleanai_best_accuracy": Metric(description="Accuracy of the best trial so far, from 0 to 1."),
    "cleanai_dense_accuracy": Metric(description="Accuracy of the dense model, from 0 to 1."),
    "cleanai_seconds_left": Metric(description="Estimated seconds that the stage still takes."),
}


def readings(status: StudyStatus) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield name, tags and value of every gauge; not a number, which Ray leaves out, where it is not known."""
    waiting = status.trials_total - status.trials_done - status.trials_running - status.trials_failed
    trials = {
        "done": status.trials_done,
        "running": status.trials_running,
        "failed": status.trials_failed,
        "waiting": waiting,
    }
    values: list[tuple[str, dict[str, str], float | None]] = [
        ("cleanai_shards_done", {}, status.shards_done),
        ("cleanai_shards", {}, status.shards_total),
        ("cleanai_samples_per_second", {}, status.samples_per_second),
        *(("cleanai_trials", {"state": state}, count) for state, count in trials.items()),
        ("cleanai_best_accuracy", {}, status.best_accuracy),
        ("cleanai_dense_accuracy", {}, status.accuracy_dense),
        ("cleanai_seconds_left", {}, status.seconds_left),
    ]
    for name, tags, value in values:
        yield name, {"study": status.study, **tags}, math.nan if value is None else float(value)


class StudyWatcher:
    """Keeps a study's status, and writes it down.

    Every change is kept at once, and written at every stage that begins, at the end, and every few seconds in between.

    Args:
        study: The study.
        run: Its run directory.
        interval: Seconds between two writings.
    """

    def __init__(self, study: Study, run: RunDirectory, *, interval: float = HEARTBEAT) -> None:
        self._run = run
        self._interval = interval
        self._status = StudyStatus(
            study=study.name,
            state="running",
            stage="start",
            trials_total=len(study.trials()),
            started=utc_now(),
            updated=utc_now(),
        )
        self._gauges = {
            name: Gauge(name, description=metric.description, tag_keys=("study", *metric.tags))
            for name, metric in METRICS.items()
        }
        self._changing, self._writing = threading.Lock(), threading.Lock()
        self._ended = threading.Event()
        self._unwritten = False
        self._thread = threading.Thread(target=self._beat, name=f"watching-{study.name}", daemon=True)

    def start(self) -> None:
        """Write the first status, and go on writing it."""
        self._write()
        self._thread.start()

    def end(self, state: Literal["finished", "failed"], error: str = "") -> None:
        """Write the last status; nothing is written after it."""
        self._ended.set()
        self._thread.join()
        self._change(state=state, error=error, trials_running=0, seconds_left=None, samples_per_second=None)
        self._write()

    def stage(self, name: str) -> None:
        """Write down that a stage begins."""
        self._change(stage=name, shards_done=None, shards_total=None, samples_per_second=None, seconds_left=None)
        self._write()

    def dense(self, accuracy: float) -> None:
        """Note the accuracy of the dense model."""
        self._change(accuracy_dense=accuracy)

    def shards(self, state: ShardState) -> None:
        """Note how many shards are done."""
        self._change(
            shards_done=state.done,
            shards_total=state.total,
            samples_per_second=state.samples_per_second,
            seconds_left=state.seconds_left,
        )

    def complete(self, state: SweepState) -> None:
        """Note the trials that were complete before."""
        self._change(trials_done=state.done, **_best(state))

    def sweep(self, state: SweepState) -> None:
        """Note how many trials run and ended, those that were complete before included."""
        before = self._status.trials_total - state.total
        self._change(
            trials_done=before + state.done,
            trials_running=state.running,
            trials_failed=state.failed,
            seconds_left=state.seconds_left,
            **_best(state),
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
                self._unwritten = False
            except ArtifactError as error:
                # The study is worth more than being watched: it is told once, and the next beat tries again.
                if not self._unwritten:
                    _LOG.warning("%s", error)
                self._unwritten = True
            if ray.is_initialized():
                for name, tags, value in readings(status):
                    self._gauges[name].set(value, tags=tags)


def _best(state: SweepState) -> dict[str, Any]:
    return {"best": state.best, "best_accuracy": state.best_accuracy} if state.best else {}


@contextmanager
def watching(study: Study, run: RunDirectory, narrator: Narrator) -> Iterator[StudyWatcher]:
    """Let a study be watched: what the narrator is told in here is written down, and how it ended.

    To be entered once Ray is connected, for the metrics.

    Args:
        study: The study.
        run: Its run directory.
        narrator: Who is told of the course of the study.
    """
    watcher = StudyWatcher(study, run)
    watcher.start()
    narrator.watch(watcher)
    try:
        yield watcher
    except BaseException as error:
        watcher.end("failed", _sentence(error))
        raise
    else:
        watcher.end("finished")
    finally:
        narrator.watch(None)


def _sentence(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command resumes it"
    return " ".join(str(error).split()) or type(error).__name__
