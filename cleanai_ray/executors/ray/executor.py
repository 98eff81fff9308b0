"""The executor that runs a study on a Ray cluster."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray

from cleanai_ray.config.study import Study
from cleanai_ray.errors import DeviceError
from cleanai_ray.executors.base import Executor, Resources, ShardPool
from cleanai_ray.executors.counts import SweepState
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.executors.ray.calibration_actor import CalibrationActor
from cleanai_ray.executors.ray.cluster import (
    Cluster,
    assigned_device,
    concurrent_trials,
    connected,
    require_room,
    result_of,
)
from cleanai_ray.executors.ray.fresh_process import device_faults_named
from cleanai_ray.executors.ray.metrics import StatusGauges
from cleanai_ray.executors.ray.object_store import ObjectStoreValue, references_of
from cleanai_ray.executors.ray.remote_writer import RemoteWriter, remote_writer
from cleanai_ray.executors.ray.shard_pool import ActorPool
from cleanai_ray.executors.ray.sweep import run_sweep_on_ray
from cleanai_ray.executors.shared import Shared
from cleanai_ray.executors.trial_work import SweepInputs, TrialGroup
from cleanai_ray.stages.numerics import restore_numerics
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.storage.status import StudyStatus


class RayExecutor(Executor):
    """Runs a study on a connected Ray cluster.

    Args:
        cluster: The cluster.
        store: Access to the run directory for workers.
        run: The run directory, for this process.
    """

    store: RemoteWriter

    def __init__(self, cluster: Cluster, store: RemoteWriter, run: RunDirectory) -> None:
        self.store = store
        self.cluster = cluster
        self._run = run
        self._gauges = StatusGauges()
        dashboard = f"; dashboard {cluster.dashboard}" if cluster.dashboard else ""
        self.resources = Resources(
            num_nodes=cluster.num_nodes,
            cpus=cluster.cpus,
            gpus=cluster.gpus,
            description=f"Ray: {cluster.num_nodes} node{'s' * (cluster.num_nodes > 1)}, {cluster.cpus:g} CPUs, "
            f"{cluster.gpus:g} GPUs{dashboard}",
        )

    def check(self, study: Study) -> None:
        """Refuse a study whose trials can never be placed; see `require_room`."""
        require_room(study, self.cluster)

    def watch(self, status: StudyStatus) -> None:
        """Publish the status on Ray's metrics port."""
        self._gauges.publish(status)

    def concurrent_trials(self, study: Study) -> int:
        """Return how many trials the live cluster has room for at a time, or the number that the study sets."""
        return concurrent_trials(study, self.cluster)

    def share(self, value: Any) -> Shared[Any]:
        """Put a value into the object store."""
        return ObjectStoreValue(ray.put(value))

    def call(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return the result of a task that runs on a GPU, or on a node's free cores if there is none."""
        on_gpu = self.cluster.gpus > 0
        task = ray.remote(_on_assigned_device).options(
            name=name,
            num_cpus=1 if on_gpu else max(1, int(self.cluster.node_cpus)),
            num_gpus=1 if on_gpu else 0,
            retry_exceptions=[DeviceError],
        )
        return result_of(task.remote(function, *references_of(arguments)))

    def map(self, name: str, function: Callable[..., Any], items: Sequence[Any], *arguments: Any) -> list[Any]:
        """Return the results of a task an item, each on a GPU, or on one core if there is none."""
        task = ray.remote(_on_assigned_device).options(
            name=name, num_cpus=1, num_gpus=int(self.cluster.gpus > 0), retry_exceptions=[DeviceError]
        )
        given = references_of(arguments)
        return [result_of(reference) for reference in [task.remote(function, item, *given) for item in items]]

    @contextmanager
    def shard_pool(self, study: Study, run: RunDirectory, progress: ProgressReporter) -> Iterator[ShardPool]:
        """Yield a pool of calibration actors, which start when they are first needed."""

        def start(index: int) -> Any:
            actor = ray.remote(CalibrationActor).options(
                name=f"calibration-{study.name}-{index}-{uuid.uuid4().hex[:6]}",
                num_cpus=0 if self.cluster.gpus else 1,
                num_gpus=1 if self.cluster.gpus else 0,
            )
            return actor.remote(study.model_dump_json(), self.store)

        wanted = study.resources.calibration_actors
        with ActorPool(start, None if wanted == "auto" else int(wanted), run, progress) as pool:
            yield pool

    def run_trials(
        self, inputs: SweepInputs, groups: Sequence[TrialGroup], state: SweepState, refresh: Callable[[], None]
    ) -> None:
        """Run trials through Ray Tune, in parallel within the resources."""
        run_sweep_on_ray(inputs, groups, self._run, state, refresh)


def _on_assigned_device(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the function's result; a process that had a GPU ends after it, so that a fault of the GPU ends with it."""
    with device_faults_named():
        return function(assigned_device(), *arguments)


@contextmanager
def connect(study: Study, run: RunDirectory, address: str | None) -> Iterator[Executor]:
    """Connect to a cluster, or start one on this machine, and disconnect when the context ends.

    Raises:
        ClusterError: When no cluster answers at the address.
    """
    with connected(address) as cluster, remote_writer(study, run, cluster.driver_node) as store:
        try:
            yield RayExecutor(cluster, store, run)
        finally:
            restore_numerics()
