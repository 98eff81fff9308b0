"""Connecting to a Ray cluster, or starting one on this machine, and what it offers."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from cleanai_ray.errors import ClusterError
from cleanai_ray.study import Study


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a connected cluster offers.

    Attributes:
        num_nodes: Nodes that are alive.
        cpus: CPU cores of all nodes.
        gpus: GPUs of all nodes.
        node_cpus: CPU cores of the node that has most.
        dashboard: Address of the Ray dashboard, or "" where it is off.
        driver_node: Identifier of the node this process runs on.
    """

    num_nodes: int
    cpus: float
    gpus: float
    node_cpus: float
    dashboard: str
    driver_node: str


@contextmanager
def connected(address: str | None) -> Iterator[Cluster]:
    """Connect to a cluster (`auto`, `host:port`), or start one on this machine, and disconnect afterwards.

    Raises:
        ClusterError: When there is no cluster at the address.
    """
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
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ClusterError(f"no Ray cluster answers at '{address}': {' '.join(str(error).split())}") from error
    try:
        yield _inspect()
    finally:
        if not already:
            ray.shutdown()


def _prepare_environment(*, local: bool) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not local:
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if os.getcwd() not in path:
        os.environ["PYTHONPATH"] = os.pathsep.join([os.getcwd(), *filter(None, path)])


def _inspect() -> Cluster:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    context: Any = ray.get_runtime_context()
    dashboard = ray.worker._global_node.webui_url if ray.worker._global_node else ""
    return Cluster(
        num_nodes=len(nodes),
        cpus=sum(node["Resources"].get("CPU", 0) for node in nodes),
        gpus=sum(node["Resources"].get("GPU", 0) for node in nodes),
        node_cpus=max(node["Resources"].get("CPU", 0) for node in nodes),
        dashboard=f"http://{dashboard}" if dashboard else "",
        driver_node=context.get_node_id(),
    )


def require_room(study: Study, cluster: Cluster) -> None:
    """Refuse a study whose trials could never be placed.

    Raises:
        ClusterError: One sentence with the numbers that do not fit.
    """
    wanted = study.resources
    for name, need, kind in (
        ("cpus_per_trial", wanted.cpus_per_trial, "CPU"),
        ("gpus_per_trial", wanted.gpus_per_trial, "GPU"),
    ):
        largest = max(node["Resources"].get(kind, 0) for node in ray.nodes() if node["Alive"])
        if need > largest:
            raise ClusterError(
                f"resources.{name} is {need:g}, and no node of the cluster has more than {largest:g} {kind}s; "
                f"allowed: at most {largest:g}"
            )


def concurrent_trials(study: Study, cluster: Cluster) -> int:
    """Return how many trials run at a time: what the study says, or what the cluster holds."""
    wanted = study.resources
    if wanted.max_concurrent_trials != "auto":
        return int(wanted.max_concurrent_trials)
    room = cluster.cpus / wanted.cpus_per_trial
    if wanted.gpus_per_trial:
        room = min(room, cluster.gpus / wanted.gpus_per_trial)
    return max(1, int(room + 1e-9))


def assigned_device() -> str:
    """Return the device that Ray assigned to this worker: its first GPU, or the CPU."""
    return "cuda:0" if ray.get_gpu_ids() else "cpu"
