"""Calibration by actors: shards of samples in, mergeable statistics out, merged in shard order by the driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ray
from torch import nn

from cleanai_ray.artifacts import RunDirectory
from cleanai_ray.distributed.cluster import Cluster, assigned_device
from cleanai_ray.errors import CleanAIError
from cleanai_ray.keys import calibration_key
from cleanai_ray.stages import calibrate_shard, merge
from cleanai_ray.statistics import ActivationStatistics
from cleanai_ray.study import Study
from cleanai_ray.workspace import open_workspace

_MAX_RETRIES = 2


class CalibrationActor:
    """Holds the dense model and the data set, and turns shards into statistics.

    Args:
        study_json: The study.
    """

    def __init__(self, study_json: str) -> None:
        self._workspace = open_workspace(study_json, assigned_device())
        self._model: nn.Module | None = None
        self._shards = self._workspace.shards()

    def calibrate(self, shard: int, weights: bytes) -> tuple[int, bytes]:
        """Return a shard's number and its statistics, serialised.

        The content of the dense weights' file comes with every call, from the object store, so that an actor that was
        restarted has it too; the model is built from it once.
        """
        if self._model is None:
            self._model = self._workspace.dense_model(weights)
        return shard, calibrate_shard(self._workspace, self._model, self._shards[shard]).to_bytes()


def calibrate_on_actors(
    study: Study,
    weights: Any,
    dense_digest: str,
    run: RunDirectory,
    cluster: Cluster,
    on_shard: Callable[[int, int], None] | None = None,
) -> ActivationStatistics:
    """Return the study's calibration: from the run directory, or computed and kept there.

    The result does not depend on the number of actors: shards are the same, and are merged in their order.

    Args:
        study: The study.
        weights: Reference to the dense weights in the object store.
        dense_digest: Digest of the dense weights.
        run: The run directory.
        cluster: The connected cluster.
        on_shard: Called with the number of shards done and of all.

    Raises:
        CleanAIError: When a shard cannot be computed; the message says which sample.
    """
    name = "cache/calibration.safetensors"
    key = calibration_key(study, dense_digest)
    if run.is_complete(name, key):
        return ActivationStatistics.from_bytes(run.read_bytes(name))
    num_shards = -(-study.data.calibration.samples // study.data.calibration.shard_size)
    actors = [_start_actor(study, cluster, i) for i in range(_num_actors(study, cluster, num_shards))]
    found: dict[int, bytes] = {}
    try:
        for shard, content in _work_through(actors, weights, num_shards):
            found[shard] = content
            if on_shard is not None:
                on_shard(len(found), num_shards)
    finally:
        for actor in actors:
            ray.kill(actor)
    statistics = merge([ActivationStatistics.from_bytes(found[shard]) for shard in sorted(found)])
    run.write_bytes(name, statistics.to_bytes())
    run.mark(name, key)
    return statistics


def _num_actors(study: Study, cluster: Cluster, num_shards: int) -> int:
    wanted = study.resources.calibration_actors
    most = int(cluster.gpus or cluster.cpus) if wanted == "auto" else int(wanted)
    return max(1, min(most, num_shards))


def _start_actor(study: Study, cluster: Cluster, index: int) -> Any:
    actor = ray.remote(CalibrationActor).options(
        name=f"calibration-{study.name}-{index}",
        num_cpus=0 if cluster.gpus else 1,
        num_gpus=1 if cluster.gpus else 0,
        max_restarts=-1,
        max_task_retries=_MAX_RETRIES,
    )
    return actor.remote(study.model_dump_json())


def _work_through(actors: list[Any], weights: Any, num_shards: int) -> Iterator[tuple[int, bytes]]:
    """Give every idle actor the next shard, and yield results as they come."""
    waiting = iter(range(num_shards))
    busy: dict[Any, Any] = {}
    for actor, shard in zip(actors, waiting, strict=False):
        busy[actor.calibrate.remote(shard, weights)] = actor
    while busy:
        ready, _ = ray.wait(list(busy), num_returns=1)
        actor = busy.pop(ready[0])
        yield _result(ready[0])
        following = next(waiting, None)
        if following is not None:
            busy[actor.calibrate.remote(following, weights)] = actor


def _result(reference: Any) -> tuple[int, bytes]:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, CleanAIError):
            raise error.cause from None
        raise
