"""The connection to a Ray cluster, or the start of one on this machine, and the resources there."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import torch

from cleanai_ray.config.study import Study
from cleanai_ray.data.loader_processes import assign_cpus
from cleanai_ray.errors import CleanAIError, ClusterError
from cleanai_ray.executors.placement import Amounts, places
from cleanai_ray.nn.allocator import keep_freed_memory

_NODE_TIMEOUT = 2.0
"""Seconds after which a node that does not answer is considered lost."""

_ANSWER_TIMEOUT = 5.0
"""Seconds in which the head of a cluster has to accept a connection."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The resources of a connected cluster.

    Attributes:
        num_nodes: Number of live nodes.
        cpus: CPU cores of all nodes.
        gpus: GPUs of all nodes.
        node_cpus: Free CPU cores of the node that has most of them; at least 1.
        nodes: The resources of each live node.
        address: Host and port of a cluster that was there before, or "" for one that was started for the study.
        dashboard: Address of the Ray dashboard, or "" if it is off.
        driver_node: Identifier of the node that this process runs on.
    """

    num_nodes: int
    cpus: float
    gpus: float
    node_cpus: float
    nodes: tuple[Amounts, ...]
    dashboard: str
    driver_node: str
    address: str = ""


def _given_or_environments(address: str | None) -> str | None:
    """Return the address of the cluster to join, the environment's where none is given; None to start one here.

    Raises:
        ClusterError: When it is that of a dashboard, or of a server for Ray's clients.
    """
    name = "the cluster's address" if address else "RAY_ADDRESS"
    address = address or os.environ.get("RAY_ADDRESS")
    if not address or address == "local":
        return None
    if address.startswith(("http://", "https://", "ray://")):
        raise ClusterError(
            f"{name} is '{address}'; allowed: 'auto', or host:port of a cluster's head, as in HEAD:6379; with the "
            "address of a dashboard, `cleanai submit` runs a study as a job"
        )
    return address


def _require_answer(address: str) -> None:
    """Check that something listens at host:port, which Ray would try for minutes.

    Raises:
        ClusterError: When nothing does.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit():  # `auto`, or what Ray alone understands
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_TIMEOUT).close()
    except (OSError, OverflowError) as error:  # the latter of a port beyond 65535
        raise ClusterError(f"no Ray cluster answers at '{address}': {error}") from error


@contextmanager
def connected(address: str | None) -> Iterator[Cluster]:
    """Connect to a cluster (`auto`, `host:port`), or start one on this machine, and disconnect afterwards.

    Args:
        address: Where the cluster is; if None, what the environment variable RAY_ADDRESS says, as for Ray itself.

    Raises:
        ClusterError: When there is no cluster at the address.
    """
    address = _given_or_environments(address)
    if address is not None:
        _require_answer(address)
    _prepare_environment(local=address is None)
    already = ray.is_initialized()
    try:
        if not already:
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=True if address is None else None,
            )
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.AuthenticationError) as error:
        raise ClusterError(f"no Ray cluster answers at '{address}': {' '.join(str(error).split())}") from error
    try:
        yield _inspect(is_own=address is None and not already)
    finally:
        if not already:
            ray.shutdown()


def _prepare_environment(*, local: bool) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    # On Ctrl-C, Tune itself would end as if all trials had ended.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not local:
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    # Ray's own default, 15, lets any other process of a person's machine keep a study waiting for most of the time.
    os.environ.setdefault("RAY_worker_niceness", "0")
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if os.getcwd() not in path:
        os.environ["PYTHONPATH"] = os.pathsep.join([os.getcwd(), *filter(None, path)])


def _inspect(*, is_own: bool) -> Cluster:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    context: Any = ray.get_runtime_context()
    # Private: this process's handle on its node, None without one; webui_url is the dashboard's host and port.
    dashboard = ray.worker._global_node.webui_url if ray.worker._global_node else ""
    # Private: the resources of each live node that are free now, by node id.
    free_resources = ray._private.state.available_resources_per_node().values()
    return Cluster(
        num_nodes=len(nodes),
        cpus=sum(node["Resources"].get("CPU", 0) for node in nodes),
        gpus=sum(node["Resources"].get("GPU", 0) for node in nodes),
        nodes=tuple(dict(node["Resources"]) for node in nodes),
        node_cpus=max(1.0, *(free.get("CPU", 0) for free in free_resources)),
        dashboard=f"http://{dashboard}" if dashboard else "",
        driver_node=context.get_node_id(),
        address="" if is_own else context.gcs_address,
    )


def require_room(study: Study, cluster: Cluster) -> None:
    """Refuse a study whose trials can never be placed, neither on present nodes nor on those an autoscaler may add.

    Raises:
        ClusterError: One sentence with the numbers that do not fit.
    """
    wanted, future_nodes = study.resources, _nodes_to_come()
    for name, need, kind in (("cpus_per_trial", wanted.cpus_per_trial, "CPU"), ("gpus_per_trial", wanted.gpus, "GPU")):
        largest = max(resources.get(kind, 0) for resources in [*_nodes(), *future_nodes])
        if need > largest:
            raise ClusterError(
                f"resources.{name} is {need:g}, and no node of the cluster has more than {largest:g} {kind}s; "
                f"allowed: at most {largest:g}"
            )
    workers, room = study.workers_per_trial, places_for_workers(study)
    if workers > room and not future_nodes:
        gpus = f" and {wanted.gpus:g} GPUs" if wanted.gpus else ""
        raise ClusterError(
            f"finetune.num_workers is {workers}, each with {wanted.cpus_per_trial:g} CPUs{gpus}, and the cluster has "
            f"room for {room} of them at a time; allowed: at most {room}"
        )


def concurrent_trials(study: Study, cluster: Cluster) -> int:
    """Return the number of trials that run at a time: the study's, or as many as the live cluster has room for."""
    wanted = study.resources.max_concurrent_trials
    return max(1, places_for_workers(study) // study.workers_per_trial) if wanted == "auto" else int(wanted)


def places_for_workers(study: Study, *, only_answering: bool = False) -> int:
    """Return how many workers of trials the cluster has room for at a time; all workers need the same.

    Args:
        study: The study.
        only_answering: True to leave out nodes that cannot be reached, even if Ray still lists them as alive.
    """
    return places(_nodes(only_answering=only_answering), study.resources.cpus_per_trial, study.resources.gpus)


def nodes_for_trials(cluster: Cluster) -> list[Amounts]:
    """Return the resources of the live nodes; if none has a GPU, also of the nodes that an autoscaler may add."""
    return [*cluster.nodes, *([] if cluster.gpus else _nodes_to_come())]


def free_places(study: Study) -> int:
    """Return how many workers of trials the cluster has room for beside what runs now."""
    # Private: the resources of each live node that are free now, by node id.
    free = ray._private.state.available_resources_per_node().values()
    return places(list(free), study.resources.cpus_per_trial, study.resources.gpus)


def workers_to_ask_for(study: Study, wanted: int | None = None, *, lost_some: bool = False) -> int:
    """Return the number of workers to request for a trial: those wanted, or fewer if the nodes have room for fewer.

    If an autoscaler may replace a lost node, it is always the number wanted.

    Args:
        study: The study.
        wanted: The number wanted; by default the study's.
        lost_some: True if the trial has just lost workers; perhaps with their node, which Ray notices only later.
    """
    wanted = study.workers_per_trial if wanted is None else wanted
    return wanted if _nodes_to_come() else max(1, min(wanted, places_for_workers(study, only_answering=lost_some)))


def _nodes(*, only_answering: bool = False) -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"] and (not only_answering or _answers(node))]


def _answers(node: dict[str, Any]) -> bool:
    """Return whether the process that manages a node accepts connections."""
    try:
        with socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=_NODE_TIMEOUT):
            return True
    except OSError:
        return False


def _nodes_to_come() -> list[dict[str, float]]:
    """Return the resources of a node of each kind that an autoscaler, if there is one, may add."""
    # Private: the autoscaler's configuration, with the resources and max_count of each kind; None without one.
    config = ray._private.state.state.get_cluster_config()
    groups = config.node_group_configs if config is not None else ()
    return [dict(group.resources) for group in groups if group.max_count != 0]


def assigned_device(cpus: float | None = None) -> str:
    """Return the device that Ray assigned to this worker: its first GPU, or the CPU; torch must find the GPU, too.

    The worker's data loaders are told the CPU cores that they may use, and its allocator to keep freed memory on CPUs.

    Args:
        cpus: These cores; by default, those that Ray assigned.
    """
    assigned = ray.get_runtime_context().get_assigned_resources().get("CPU", 1.0)
    assign_cpus(assigned if cpus is None else cpus)
    if ray.get_gpu_ids() and torch.cuda.is_available():
        return "cuda:0"
    keep_freed_memory()
    return "cpu"


def result_of(reference: Any) -> Any:
    """Return the result of a task, or raise the error that it raised."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, CleanAIError):
            raise error.cause from None
        raise
