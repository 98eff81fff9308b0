"""Calibration by actors: shards of samples in, mergeable values out, merged in shard order by the driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any

import ray
from torch import nn

from cleanai_ray.artifacts import RunDirectory
from cleanai_ray.calibration_shards import CalibrationNeeds, calibrate_shard, count_shard, merge
from cleanai_ray.dense_measures import MomentCollector
from cleanai_ray.distributed.cluster import Cluster, assigned_device
from cleanai_ray.errors import CleanAIError
from cleanai_ray.keys import calibration_key
from cleanai_ray.statistics import ActivationHistograms, ActivationStatistics, Ranges
from cleanai_ray.study import Study
from cleanai_ray.workspace import open_workspace

_MAX_RETRIES = 2
OnShard = Callable[[int, int], None]


class CalibrationActor:
    """Holds the dense model and the data set, and turns shards into mergeable values.

    The content of the dense weights' file comes with every call, from the object store, so that an actor that was
    restarted has it too; the model is built from it once.

    Args:
        study_json: The study.
    """

    def __init__(self, study_json: str) -> None:
        self._workspace = open_workspace(study_json, assigned_device())
        self._model: nn.Module | None = None
        self._shards = self._workspace.shards()
        self._moments: MomentCollector | None = None

    def calibrate(self, shard: int, weights: bytes) -> tuple[int, bytes]:
        """Return a shard's number and its statistics, serialised."""
        needs = CalibrationNeeds.of(self._workspace.study)
        return shard, calibrate_shard(self._workspace, self._dense(weights), self._shards[shard], needs).to_bytes()

    def count(self, shard: int, weights: bytes, ranges: Ranges, sections: int) -> tuple[int, bytes]:
        """Return a shard's number and its histograms over the ranges of all shards, serialised."""
        positions = self._shards[shard]
        return shard, count_shard(self._workspace, self._dense(weights), positions, ranges, sections).to_bytes()

    def moments(self, shard: int, weights: bytes) -> tuple[int, bytes]:
        """Return a shard's number and its second moments, serialised."""
        if self._moments is None:
            self._moments = MomentCollector(self._workspace, self._dense(weights))
        return shard, self._moments.shard(shard).to_bytes()

    def _dense(self, weights: bytes) -> nn.Module:
        if self._model is None:
            self._model = self._workspace.dense_model(weights)
        return self._model


class CalibrationPool:
    """Calibration actors, started when they are first needed and stopped at the end.

    Args:
        study: The study.
        cluster: The connected cluster.
    """

    def __init__(self, study: Study, cluster: Cluster) -> None:
        self._study = study
        self._cluster = cluster
        self._actors: list[Any] = []

    def __enter__(self) -> CalibrationPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def work_through(
        self,
        call: str,
        num_shards: int,
        weights: Any,
        on_shard: OnShard | None = None,
        *,
        arguments: Sequence[Any] = (),
    ) -> list[bytes]:
        """Have every shard computed once, and return the results in the order of the shards.

        Args:
            call: Name of the actor's method.
            num_shards: Number of shards.
            weights: Reference to the dense weights in the object store.
            on_shard: Called with the number of shards done and of all.
            arguments: Further arguments of the actor's method.

        Raises:
            CleanAIError: When a shard cannot be computed; the message says which sample.
        """
        for index in range(len(self._actors), self._num_actors(num_shards)):
            self._actors.append(_start_actor(self._study, self._cluster, index))
        found: dict[int, bytes] = {}
        calls = [getattr(actor, call) for actor in self._actors]
        for shard, content in _results(calls, num_shards, weights, *arguments):
            found[shard] = content
            if on_shard is not None:
                on_shard(len(found), num_shards)
        return [found[shard] for shard in range(num_shards)]

    def _num_actors(self, num_shards: int) -> int:
        wanted = self._study.resources.calibration_actors
        most = int(self._cluster.gpus or self._cluster.cpus) if wanted == "auto" else int(wanted)
        return max(1, min(most, num_shards))


def calibrate_on_actors(
    study: Study,
    weights: Any,
    dense_digest: str,
    run: RunDirectory,
    pool: CalibrationPool,
    on_shard: OnShard | None = None,
) -> ActivationStatistics:
    """Return the study's calibration: from the run directory, or computed and kept there.

    The result does not depend on the number of actors: shards are the same, and are merged in their order.

    Args:
        study: The study.
        weights: Reference to the dense weights in the object store.
        dense_digest: Digest of the dense weights.
        run: The run directory.
        pool: The calibration actors.
        on_shard: Called with the number of shards done and of all, in each of the passes.

    Raises:
        CleanAIError: When a shard cannot be computed; the message says which sample.
    """
    name = "cache/calibration.safetensors"
    key = calibration_key(study, dense_digest)
    if run.is_complete(name, key):
        return ActivationStatistics.from_bytes(run.read_bytes(name))
    num_shards = -(-study.data.calibration.samples // study.data.calibration.shard_size)
    shards = pool.work_through("calibrate", num_shards, weights, on_shard)
    statistics = merge([ActivationStatistics.from_bytes(content) for content in shards])
    sections = CalibrationNeeds.of(study).sections
    if sections is not None:
        shards = pool.work_through("count", num_shards, weights, on_shard, arguments=(statistics.ranges, sections))
        statistics = statistics.with_histograms(merge([ActivationHistograms.from_bytes(content) for content in shards]))
    run.write_bytes(name, statistics.to_bytes())
    run.mark(name, key)
    return statistics


def _start_actor(study: Study, cluster: Cluster, index: int) -> Any:
    actor = ray.remote(CalibrationActor).options(
        name=f"calibration-{study.name}-{index}",
        num_cpus=0 if cluster.gpus else 1,
        num_gpus=1 if cluster.gpus else 0,
        max_restarts=-1,
        max_task_retries=_MAX_RETRIES,
    )
    return actor.remote(study.model_dump_json())


def _results(calls: list[Any], num_shards: int, *arguments: Any) -> Iterator[tuple[int, bytes]]:
    """Give every idle actor the next shard, and yield results as they come."""
    waiting = iter(range(num_shards))
    busy: dict[Any, Any] = {}
    for call, shard in zip(calls, waiting, strict=False):
        busy[call.remote(shard, *arguments)] = call
    while busy:
        ready, _ = ray.wait(list(busy), num_returns=1)
        call = busy.pop(ready[0])
        yield result_of(ready[0])
        following = next(waiting, None)
        if following is not None:
            busy[call.remote(following, *arguments)] = call


def result_of(reference: Any) -> Any:
    """Return what a task made, or raise the error that it raised."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, CleanAIError):
            raise error.cause from None
        raise
