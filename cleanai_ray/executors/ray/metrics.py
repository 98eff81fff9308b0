"""The status of a study on Ray's metrics port, on the driver's node; each gauge is called `ray_<name>` there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import ray
from ray.util.metrics import Gauge

from cleanai_ray.storage.status import StudyStatus


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A gauge of a study.

    Attributes:
        description: The meaning and the unit of its value.
        tags: Tags besides `study`.
    """

    description: str
    tags: tuple[str, ...] = ()


_OTHERS = ", from 0 to 1 (of other tasks, what trials are compared by)"

METRICS: Mapping[str, Metric] = {
    "cleanai_shards_done": Metric(description="Shards of the stage that are done."),
    "cleanai_shards": Metric(description="Shards of the stage."),
    "cleanai_samples_per_second": Metric(description="Samples per second in this stage."),
    "cleanai_trials": Metric(description="Trials by state: done, running, failed, waiting.", tags=("state",)),
    "cleanai_best_accuracy": Metric(description=f"Accuracy of the best trial so far{_OTHERS}."),
    "cleanai_dense_accuracy": Metric(description=f"Accuracy of the dense model{_OTHERS}."),
    "cleanai_seconds_left": Metric(description="Estimated seconds until the stage ends."),
}


def readings(status: StudyStatus) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yield name, tags and value of every gauge; an unknown value is NaN, which Ray leaves out."""
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


class StatusGauges:
    """Sets the gauges of a study."""

    def __init__(self) -> None:
        self._gauges = {
            name: Gauge(name, description=metric.description, tag_keys=("study", *metric.tags))
            for name, metric in METRICS.items()
        }

    def publish(self, status: StudyStatus) -> None:
        """Set the gauges to a status, if Ray is running."""
        if ray.is_initialized():
            for name, tags, value in readings(status):
                self._gauges[name].set(value, tags=tags)
