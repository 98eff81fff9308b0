"""The resources that a job's own process reserves, and a check that the cluster has them."""

from __future__ import annotations

from dataclasses import dataclass

from ray.util.state import list_nodes

from cleanai_ray.config.study import Study
from cleanai_ray.errors import ClusterError
from cleanai_ray.executors.placement import SHARES

_GIGABYTE = 1e9
_KINDS = (("cpus", "CPU", "CPUs"), ("gpus", "GPU", "GPUs"), ("memory", "memory", "GB of memory"))

Amounts = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class EntryPoint:
    """The resources that a job's own process reserves, besides those of its trials.

    Attributes:
        cpus: CPU cores.
        gpus: GPUs.
        memory: Memory, in GB of 1e9 bytes.
    """

    cpus: float = 0.0
    gpus: float = 0.0
    memory: float = 0.0

    @property
    def memory_bytes(self) -> int:
        """The memory in bytes."""
        return int(self.memory * _GIGABYTE)


def node_resources(address: str) -> list[Amounts]:
    """Return the total resources of each live node of a cluster, as Ray counts them: CPU, GPU, memory in bytes.

    Args:
        address: The dashboard's address.
    """
    # Unstable, as all of ray.util.state: the state and total resources of each node.
    return [node.resources_total for node in list_nodes(address=address) if node.state == "ALIVE"]


def require_entry_point(entry_point: EntryPoint, study: Study, resources: list[Amounts]) -> None:
    """Refuse an entry point that the cluster can never place, or that leaves no room for a trial.

    Ray would keep such a job waiting for ever, without saying why.

    Args:
        entry_point: The resources that the job's own process reserves.
        study: The study that it runs.
        resources: The resources of each node, as `node_resources` returns them.

    Raises:
        ClusterError: One sentence with the numbers that do not fit.
    """
    wanted = {name: getattr(entry_point, name) for name, _, _ in _KINDS}
    nodes = [
        {name: total.get(kind, 0.0) / (_GIGABYTE if name == "memory" else 1) for name, kind, _ in _KINDS}
        for total in resources
    ]
    _require_each(wanted, nodes)
    hosts = [number for number, node in enumerate(nodes) if _fits(wanted, node)]
    if not hosts:
        raise ClusterError(
            f"no node of the cluster has {_describe(wanted)} together; its nodes have {_describe_nodes(nodes)}"
        )
    trial = {"cpus": study.resources.cpus_per_trial, "gpus": study.resources.gpus, "memory": 0.0}
    least = {**trial, "gpus": min(SHARES)}
    if study.resources.gpus_per_trial == "auto" and any(_fits(least, node) for node in nodes):
        trial = least  # where a GPU has room for a trial, `auto` takes no less
    if not any(_fits(trial, room) for host in hosts for room in _left_for_trials(nodes, host, wanted)):
        raise ClusterError(
            f"the entry point's {_describe(wanted)} leave no room for a trial's {_describe(trial)}; "
            f"the cluster's nodes have {_describe_nodes(nodes)}"
        )


def _require_each(wanted: Amounts, nodes: list[Amounts]) -> None:
    lacking = [
        f"--{name} is {wanted[name]:g}, and no node of the cluster has more than {largest:.4g} {unit}"
        for name, _, unit in _KINDS
        if wanted[name] > (largest := max((node[name] for node in nodes), default=0.0))
    ]
    if lacking:
        raise ClusterError("; ".join(lacking) + "; a job that asks for more would wait for ever")


def _left_for_trials(nodes: list[Amounts], host: int, wanted: Amounts) -> list[Amounts]:
    """Return what each node has left for trials when the entry point runs on the host."""
    left = {name: nodes[host][name] - wanted[name] for name in wanted}
    return [*nodes[:host], left, *nodes[host + 1 :]]


def _fits(wanted: Amounts, room: Amounts) -> bool:
    return all(wanted[name] <= room[name] + 1e-9 for name in wanted)


def _describe(amounts: Amounts) -> str:
    return " and ".join(_amount(amounts[name], unit) for name, _, unit in _KINDS if amounts[name])


def _amount(amount: float, unit: str) -> str:
    return f"{amount:.4g} {unit.removesuffix('s') if amount == 1 else unit}"


def _describe_nodes(nodes: list[Amounts]) -> str:
    """Return the different kinds of nodes as text, the largest first."""
    kinds = sorted({tuple(node[name] for name, _, _ in _KINDS) for node in nodes}, reverse=True)
    return "; or ".join(
        ", ".join(_amount(amount, unit) for amount, (_, _, unit) in zip(kind, _KINDS, strict=True)) for kind in kinds
    )
