"""The interface between a study and whatever runs its work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from cleanai_ray.config.study import Study
from cleanai_ray.executors.counts import SweepState
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.executors.shared import Shared
from cleanai_ray.executors.trial_work import SweepInputs, TrialGroup
from cleanai_ray.executors.writer import RunStore
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.storage.status import StudyStatus

_SHARDS = "cache/shards"


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The resources of an executor.

    Attributes:
        num_nodes: Machines.
        cpus: CPU cores of all of them.
        gpus: GPUs of all of them.
        description: The resources in a line, for people.
    """

    num_nodes: int
    cpus: float
    gpus: float
    description: str


@dataclass(frozen=True, kw_only=True)
class ShardWork:
    """One pass over the shards of the calibration samples.

    Attributes:
        call: The worker's method: `calibrate`, `count` or `moments`.
        title: Its name in messages.
        num_shards: Number of shards.
        inputs: Digest of everything that the results depend on.
    """

    call: str
    title: str
    num_shards: int
    inputs: str

    def file(self, shard: int) -> str:
        """Return the file of the run directory that keeps the result of a shard."""
        return f"{_SHARDS}/{self.call}/{shard:06d}.safetensors"


class ShardPool(ABC):
    """Workers that compute shards and add the results up.

    Args:
        run: The run directory, where the results of shards are kept until their sum is.
        progress: Told of every shard that is done.
    """

    def __init__(self, run: RunDirectory, progress: ProgressReporter) -> None:
        self.run = run
        self.progress = progress

    @abstractmethod
    def sum_shards(self, work: ShardWork, *arguments: Any) -> bytes:
        """Compute every shard, and return the sum of the results, added in a tree of fixed shape.

        Args:
            work: The pass.
            arguments: Further arguments of the worker's method; a `Shared` one stands for its value.

        Raises:
            CleanAIError: The error of a shard, or ClusterError when one was tried too often.
        """

    def forget_shards(self) -> None:
        """Delete the results of the shards: their sum is kept now."""
        self.run.delete(_SHARDS)


class Executor(ABC):
    """Runs the work of one study.

    A new executor is one file that registers, in `cleanai_ray.registry.EXECUTORS`, a function
    `(study, run, address) -> context manager of an Executor`.

    Attributes:
        resources: What it has.
        store: The run directory, as workers reach it.
    """

    resources: Resources
    store: RunStore

    def check(self, study: Study) -> None:  # noqa: B027 - by default every study fits
        """Refuse a study that could never run here.

        Raises:
            ClusterError: One sentence with the numbers that do not fit.
        """

    def watch(self, status: StudyStatus) -> None:  # noqa: B027 - by default nobody watches
        """Publish the status of the study where people watch the executor."""

    @abstractmethod
    def concurrent_trials(self, study: Study) -> int:
        """Return how many trials run at a time."""

    @abstractmethod
    def share(self, value: Any) -> Shared[Any]:
        """Return a value as every worker reads it."""

    @abstractmethod
    def call(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return `function(device, *arguments)`, computed by a worker that has a GPU, or else a machine's cores.

        Args:
            name: The name of the work in dashboards.
            function: A function of a module; its first argument is the device to compute on, for instance `cuda:0`.
            arguments: Its other arguments; a `Shared` one stands for its value.
        """

    @abstractmethod
    def shard_pool(
        self, study: Study, run: RunDirectory, progress: ProgressReporter
    ) -> AbstractContextManager[ShardPool]:
        """Return workers for the calibration of a study of one draw, which stop when the context ends."""

    @abstractmethod
    def run_trials(
        self, inputs: SweepInputs, groups: Sequence[TrialGroup], state: SweepState, refresh: Callable[[], None]
    ) -> None:
        """Run trials; each is written to the store, failed ones too.

        Args:
            inputs: What all trials read.
            groups: Trials that are run together since they share stages.
            state: Kept up to date.
            refresh: Called when the state has changed.
        """
