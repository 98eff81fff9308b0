"""The executor that runs a study on a Ray cluster."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import ray

from cleanai_ray.analysis.numbers import counted, plural
from cleanai_ray.config.study import Study
from cleanai_ray.errors import DeviceError
from cleanai_ray.executors.base import Executor, Resources, ShardPool
from cleanai_ray.executors.counts import SweepState
from cleanai_ray.executors.placement import Allotment, Room, cpus_per_gpu, gpu_share, idle_advice, unused_gpus
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.executors.ray.calibration_actor import CalibrationActor
from cleanai_ray.executors.ray.cluster import (
    Cluster,
    assigned_device,
    concurrent_trials,
    connected,
    nodes_for_trials,
    require_room,
    result_of,
)
from cleanai_ray.executors.ray.fresh_process import device_faults_named
from cleanai_ray.executors.ray.gpus import gpu_memory
from cleanai_ray.executors.ray.metrics import StatusGauges
from cleanai_ray.executors.ray.object_store import ObjectStoreValue, references_of
from cleanai_ray.executors.ray.remote_writer import RemoteWriter, remote_writer
from cleanai_ray.executors.ray.shard_pool import ActorPool
from cleanai_ray.executors.ray.sweep import run_sweep_on_ray
from cleanai_ray.executors.ray.tracking import check_trackers
from cleanai_ray.executors.shared import Shared
from cleanai_ray.executors.trial_work import SweepInputs, TrialGroup
from cleanai_ray.stages.numerics import restore_numerics
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.storage.status import StudyStatus

_LOG = logging.getLogger(__name__)


class RayExecutor(Executor):
    """Runs a study on a connected Ray cluster.

    Args:
        cluster: The cluster.
        store: Access to the run directory for workers.
        run: The run directory, for this process.
        gpu_bytes: Memory of each GPU that torch finds in the cluster; with none of them, all work runs on CPUs, and
            waits for no GPU.
    """

    store: RemoteWriter

    def __init__(
        self, cluster: Cluster, store: RemoteWriter, run: RunDirectory, gpu_bytes: tuple[int, ...] = ()
    ) -> None:
        self.store = store
        self.cluster = cluster
        self._run = run
        self._gpu_bytes = gpu_bytes
        self._on_gpus = bool(gpu_bytes)
        self._cores = cpus_per_gpu(cluster.nodes) if gpu_bytes else 0  # that feed a GPU while nothing else runs there
        self._allotment: Allotment | None = None
        self._gauges = StatusGauges()
        dashboard = f"; dashboard {cluster.dashboard}" if cluster.dashboard else ""
        where = f" at {cluster.address}" if cluster.address else ""
        self.resources = Resources(
            num_nodes=cluster.num_nodes,
            cpus=cluster.cpus,
            gpus=cluster.gpus,
            description=f"Ray{where}: {plural(cluster.num_nodes, 'node')}, "
            f"{counted(f'{cluster.cpus:g}', 'CPU')}, {counted(f'{cluster.gpus:g}', 'GPU')}{dashboard}",
        )

    def check(self, study: Study) -> None:
        """Refuse a study whose trials can never be placed, or whose trackers cannot be reached."""
        require_room(study, self.cluster)
        check_trackers(study, self._run)

    def watch(self, status: StudyStatus) -> None:
        """Publish the status on Ray's metrics port."""
        self._gauges.publish(status)

    def concurrent_trials(self, study: Study) -> int:
        """Return how many trials the live cluster has room for at a time, or the number that the study sets."""
        return concurrent_trials(self._with_numbers(study), self.cluster)

    def notices(self, study: Study) -> list[str]:
        """Return a sentence if the study leaves the cluster's GPUs idle."""
        notice = unused_gpus(self.cluster.gpus, len(self._gpu_bytes), uses_gpus=study.resources.uses_gpus)
        return [notice] if notice else []

    def allot(self, study: Study, num_trials: int, measure: Callable[[], int]) -> Allotment:
        """Decide how many GPUs each worker of a trial gets, if the study leaves it open."""
        wanted = study.resources
        nodes = nodes_for_trials(self.cluster)
        most = wanted.max_concurrent_trials
        room = Room(
            nodes=nodes,
            gpu_bytes=min(self._gpu_bytes, default=None),
            num_trials=num_trials,
            cpus_per_trial=wanted.cpus_per_trial,
            most_at_once=None if most == "auto" else most,
            workers_per_trial=study.workers_per_trial,
        )
        gpus, reason = wanted.gpus, ""
        if wanted.gpus_per_trial == "auto" and room.num_gpus and (self._gpu_bytes or not self.cluster.gpus):
            gpus, reason = gpu_share(room, measure, study.model.input_shape)
        advice = ""
        if study.finetune.num_workers != "auto":
            advice = idle_advice(room, gpus, fine_tunes=study.fine_tunes)
        self._allotment = Allotment(cpus=wanted.cpus_per_trial, gpus=gpus, reason=reason, advice=advice)
        return self._allotment

    def _with_numbers(self, study: Study) -> Study:
        """Return a study with the GPUs per trial that were decided on in place of `auto`."""
        if self._allotment is None or study.resources.gpus_per_trial != "auto":
            return study
        resources = study.resources.model_copy(update={"gpus_per_trial": self._allotment.gpus})
        return study.model_copy(update={"resources": resources})

    def share(self, value: Any) -> Shared[Any]:
        """Put a value into the object store."""
        return ObjectStoreValue(ray.put(value))

    def call(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return the result of a task on a GPU, or on a node's free cores if the study computes on none."""
        cpus = max(1, int(self.cluster.node_cpus))
        # A process that was idle afterwards would keep the memory that it took on the GPU.
        wanted: Any = {"num_cpus": 1, "num_gpus": 1, "max_calls": 1} if self._on_gpus else {"num_cpus": cpus}
        task = ray.remote(**wanted)(_on_assigned_device).options(name=name, retry_exceptions=[DeviceError])
        return result_of(task.remote(function, self._cores or cpus, *references_of(arguments)))

    def map(self, name: str, function: Callable[..., Any], items: Sequence[Any], *arguments: Any) -> list[Any]:
        """Return the results of a task an item, each on a GPU, or on one core if the study computes on none."""
        task = ray.remote(_in_lasting_process).options(name=name, num_cpus=1, num_gpus=int(self._on_gpus))
        given = references_of(arguments)
        references = [task.remote(function, self._cores or 1, item, *given) for item in items]
        return [result_of(reference) for reference in references]

    @contextmanager
    def shard_pool(self, study: Study, run: RunDirectory, progress: ProgressReporter) -> Iterator[ShardPool]:
        """Yield a pool of calibration actors, which start when they are first needed."""

        def start(index: int) -> Any:
            actor = ray.remote(CalibrationActor).options(
                name=f"calibration-{study.name}-{index}-{uuid.uuid4().hex[:6]}",
                num_cpus=int(not self._on_gpus),
                num_gpus=int(self._on_gpus),
            )
            return actor.remote(study.model_dump_json(), self.store, self._cores or 1)

        wanted = study.resources.calibration_actors
        kind: Literal["GPU", "CPU"] = "GPU" if self._on_gpus else "CPU"
        with ActorPool(start, kind if wanted == "auto" else int(wanted), run, progress) as pool:
            yield pool

    def run_trials(
        self, inputs: SweepInputs, groups: Sequence[TrialGroup], state: SweepState, refresh: Callable[[], None]
    ) -> None:
        """Run trials through Ray Tune, in parallel within the resources."""
        has_cuda = bool(self._gpu_bytes or not self.cluster.gpus)  # an autoscaler may add nodes with GPUs
        inputs = replace(inputs, study=self._with_numbers(inputs.study))
        run_sweep_on_ray(inputs, groups, self._run, state, refresh, has_cuda=has_cuda)


def _on_assigned_device(function: Callable[..., Any], cpus: float, *arguments: Any) -> Any:
    """Return the function's result; a process that had a GPU ends after it, so that a fault of the GPU ends with it."""
    with device_faults_named():
        return function(assigned_device(cpus), *arguments)


def _in_lasting_process(function: Callable[..., Any], cpus: float, *arguments: Any) -> Any:
    """Return the function's result; the process stays for further calls, unless its GPU fails.

    It ends then, and Ray calls the function again in another process.
    """
    try:
        return _on_assigned_device(function, cpus, *arguments)
    except DeviceError as error:
        _LOG.error("a process ends, since its GPU failed: %s", error)
        os._exit(1)


@contextmanager
def connect(study: Study, run: RunDirectory, address: str | None) -> Iterator[Executor]:
    """Connect to a cluster, or start one on this machine, and disconnect when the context ends.

    Raises:
        ClusterError: When no cluster answers at the address.
    """
    with connected(address) as cluster, remote_writer(study, run, cluster.driver_node) as store:
        gpu_bytes = gpu_memory() if cluster.gpus and study.resources.uses_gpus else ()
        try:
            yield RayExecutor(cluster, store, run, gpu_bytes)
        finally:
            restore_numerics()
