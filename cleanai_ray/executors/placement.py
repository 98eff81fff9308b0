"""Decisions on who gets which resources, as functions of numbers: none of them looks at a cluster or at a device."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Amounts = Mapping[str, float]
"""The resources of a node by kind, as Ray counts them: `CPU`, `GPU`."""

SHARES = (0.125, 0.25, 0.5, 1.0)
"""The shares of a GPU that a trial may get; each is a whole number of the one before, so that none is left over."""

LARGE_INPUT = 128 * 128
"""Pixels from which on one trial keeps a GPU busy; inputs of the usual 224 x 224 have 50,176."""

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Room:
    """What trials have to share.

    Attributes:
        nodes: The resources of each node.
        gpu_bytes: Memory of the smallest GPU; None if it is unknown.
        num_trials: Trials, or groups of trials that run together, that are to be placed.
        cpus_per_trial: CPU cores that each takes.
        most_at_once: The most trials at once that the study allows; None for no limit.
        workers_per_trial: Workers that each trial takes.
    """

    nodes: Sequence[Amounts]
    gpu_bytes: int | None
    num_trials: int
    cpus_per_trial: float
    most_at_once: int | None = None
    workers_per_trial: int = 1

    @property
    def num_gpus(self) -> float:
        """GPUs of all nodes."""
        return sum(node.get("GPU", 0) for node in self.nodes)


@dataclass(frozen=True, kw_only=True)
class Allotment:
    """The resources that each worker of a trial gets.

    Attributes:
        cpus: CPU cores.
        gpus: GPUs; below 1, workers share one.
        reason: Why this many GPUs, in words that follow "GPUs per trial: 0.25"; "" if the study says so.
        advice: A sentence on GPUs that will idle; "" if none will.
    """

    cpus: float
    gpus: float
    reason: str = ""
    advice: str = ""

    def sentences(self) -> list[str]:
        """Return what a user is told."""
        chosen = f"GPUs per trial: {self.gpus:g}, since {self.reason}" if self.reason else ""
        return [sentence for sentence in (chosen, self.advice) if sentence]

    def record(self) -> dict[str, Any]:
        """Return what the record of the run holds."""
        found = {"cpus_per_trial": self.cpus, "gpus_per_trial": self.gpus, "reason": self.reason, "advice": self.advice}
        return {key: value for key, value in found.items() if value != ""}


def places(nodes: Sequence[Amounts], cpus: float, gpus: float) -> int:
    """Return how many workers have room at a time; a worker needs its resources on one node, a fraction on one GPU.

    Args:
        nodes: The resources of each node.
        cpus: CPU cores of a worker; above 0.
        gpus: GPUs of a worker.
    """
    return sum(_places_on(node, cpus, gpus) for node in nodes)


def _places_on(node: Amounts, cpus: float, gpus: float) -> int:
    by_cpus = int(node.get("CPU", 0) / cpus + 1e-9)
    if not gpus:
        return by_cpus
    available = node.get("GPU", 0)
    by_gpus = int(available / gpus + 1e-9) if gpus >= 1 else int(available + 1e-9) * int(1 / gpus + 1e-9)
    return min(by_cpus, by_gpus)


def gpu_share(room: Room, measure: Callable[[], int], input_shape: Sequence[int]) -> tuple[float, str]:
    """Return the GPUs for each worker of a trial, and the reason in words.

    A large input, several workers a trial, or a GPU of unknown memory means a whole GPU. Otherwise it is the smallest
    share that has the memory, or a larger one if all trials find a place with that.

    Args:
        room: What trials have to share.
        measure: Returns the bytes of memory that one worker needs; called only if that matters.
        input_shape: Channels, height and width of an input.
    """
    height, width = (1, *input_shape)[-2:]
    if not room.num_gpus:
        return 0.0, "the cluster has none"
    if not _fit(room, SHARES[0]):
        return 0.0, f"no node has a GPU beside the {room.cpus_per_trial:g} CPUs of a trial"
    if room.workers_per_trial > 1:
        return 1.0, "the workers of a trial cannot share one"
    if height * width >= LARGE_INPUT:
        return 1.0, f"inputs of {height} x {width} keep one busy"
    if room.gpu_bytes is None:
        return 1.0, "their memory is not known yet"
    needed_bytes = measure()
    needed, has = f"{needed_bytes / _GIB:.1f} GiB", f"{room.gpu_bytes / _GIB:.1f} GiB"
    least = next((share for share in SHARES if needed_bytes <= share * room.gpu_bytes), None)
    if least is None:
        return 1.0, f"a trial needs about {needed}, and a GPU has {has}"
    reason = f"a trial needs about {needed} of a GPU's {has}"
    at_once = min(room.num_trials, places(room.nodes, room.cpus_per_trial, 0), room.most_at_once or room.num_trials)
    wider = [share for share in SHARES if share > least and _fit(room, share) >= at_once]
    if not wider:
        return least, reason
    return wider[-1], f"{reason}, and no more than {at_once} {'run' if at_once > 1 else 'runs'} at a time"


def _fit(room: Room, share: float) -> int:
    return places(room.nodes, room.cpus_per_trial, share)


def idle_advice(room: Room, gpus: float, *, fine_tunes: bool) -> str:
    """Return a sentence on GPUs that the trials of a study leave idle though it uses GPUs; "" if they use all.

    Args:
        room: What trials have to share.
        gpus: GPUs of each worker of a trial.
        fine_tunes: Whether trials fine-tune, which several workers can share.
    """
    num_gpus = int(room.num_gpus)
    if not num_gpus or not gpus:
        return ""
    used = -(-room.num_trials * room.workers_per_trial * gpus // 1)
    idle = int(num_gpus - used)
    if idle <= 0:
        return ""
    hint = "; with finetune.num_workers `auto`, trials use several each" if fine_tunes and gpus >= 1 else ""
    total, trials = _number(num_gpus, "GPU"), _number(room.num_trials, "trial")
    return f"{idle} of the cluster's {total} will be idle, since the study has {trials} to run{hint}"


def unused_gpus(num_gpus: float, num_usable: int, *, uses_gpus: bool) -> str:
    """Return a sentence on GPUs of which a study will use none; "" if it uses them.

    Args:
        num_gpus: GPUs that the cluster lists.
        num_usable: Those that torch finds.
        uses_gpus: Whether the study asks for GPUs.
    """
    total = _number(int(num_gpus), "GPU")
    if not num_gpus:
        return ""
    if not uses_gpus:
        return f"the cluster's {total} will be idle: resources.gpus_per_trial is 0; with `auto`, the study uses them"
    return "" if num_usable else f"the cluster lists {total}, and torch finds none there: the study computes on CPUs"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def shared_out(num_places: int, num_trials: int) -> list[int]:
    """Return places shared out over trials as evenly as possible, at least one each."""
    ends = [num_places * number // num_trials for number in range(num_trials + 1)] if num_trials else [0]
    return [max(1, end - start) for start, end in itertools.pairwise(ends)]


def cpus_per_gpu(nodes: Sequence[Amounts]) -> int:
    """Return the CPU cores for each GPU of the node that has the fewest for one; 1 without a GPU."""
    found = [node.get("CPU", 0) / node["GPU"] for node in nodes if node.get("GPU", 0)]
    return max(1, int(min(found))) if found else 1
