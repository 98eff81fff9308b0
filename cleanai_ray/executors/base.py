"""The interface between a study and the executor that runs its work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from cleanai_ray.config.study import Study
from cleanai_ray.executors.counts import SweepState
from cleanai_ray.executors.placement import Allotment
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
        num_nodes: Number of machines.
        cpus: CPU cores of all machines together.
        gpus: GPUs of all machines together.
        description: One line about the resources, for people.
    """

    num_nodes: int
    cpus: float
    gpus: float
    description: str


@dataclass(frozen=True, kw_only=True)
class ShardWork:
    """One pass over the shards of the calibration samples.

    Attributes:
        call: The worker's method: `calibrate` or `count`.
        title: Its name in messages.
        num_shards: Number of shards.
        inputs: Digest of everything that the results depend on.
    """

    call: str
    title: str
    num_shards: int
    inputs: str

    def file(self, shard: int) -> str:
        """Return the name of the file in the run directory that keeps the result of a shard."""
        return f"{_SHARDS}/{self.call}/{shard:06d}.safetensors"


class ShardPool(ABC):
    """Workers that compute shards and add the results up.

    Args:
        run: The run directory, which keeps the results of the shards until it has their sum.
        progress: Notified of every finished shard.
    """

    def __init__(self, run: RunDirectory, progress: ProgressReporter) -> None:
        self.run = run
        self.progress = progress

    @abstractmethod
    def sum_shards(self, work: ShardWork, *arguments: Any) -> bytes:
        """Compute every shard, and return the sum of the results, added up in a tree of fixed shape.

        Args:
            work: The pass.
            arguments: Further arguments of the worker's method; the value of a `Shared` one is passed.

        Raises:
            CleanAIError: The error of a shard; a ClusterError if a shard failed too often.
        """

    def forget_shards(self) -> None:
        """Delete the results of the shards, once their sum is kept."""
        self.run.delete(_SHARDS)


class Executor(ABC):
    """Runs the work of one study.

    A new executor is one file that registers, in `cleanai_ray.registry.EXECUTORS`, a function
    `(study, run, address) -> context manager of an Executor`.

    Attributes:
        resources: The machines it runs on.
        store: Access to the run directory for workers.
    """

    resources: Resources
    store: RunStore

    def check(self, study: Study) -> None:  # noqa: B027 - by default every study fits
        """Refuse a study that can never run here.

        Raises:
            ClusterError: One sentence with the numbers that do not fit.
        """

    def notices(self, study: Study) -> list[str]:
        """Return sentences that a user is told before the study begins."""
        return []

    def allot(self, study: Study, num_trials: int, measure: Callable[[], int]) -> Allotment:
        """Decide which resources each trial gets, before trials run.

        Args:
            study: The study.
            num_trials: Trials, or groups of trials that run together, that are to be run.
            measure: Returns the bytes of memory that a trial takes on a GPU; called only if that matters.
        """
        return Allotment(cpus=study.resources.cpus_per_trial, gpus=study.resources.gpus)

    def watch(self, status: StudyStatus) -> None:  # noqa: B027 - by default it is published nowhere else
        """Publish the status of the study in the executor's own monitoring."""

    @abstractmethod
    def concurrent_trials(self, study: Study) -> int:
        """Return the number of trials that run at a time."""

    @abstractmethod
    def share(self, value: Any) -> Shared[Any]:
        """Return a handle by which every worker can read a value."""

    @abstractmethod
    def call(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return `function(device, *arguments)`, computed on a GPU, or on all cores of a machine if there is none.

        Args:
            name: The name that dashboards show.
            function: A module-level function; its first argument is the device to compute on, for instance `cuda:0`.
            arguments: Its other arguments; the value of a `Shared` one is passed.
        """

    def map(self, name: str, function: Callable[..., Any], items: Sequence[Any], *arguments: Any) -> list[Any]:
        """Return `function(device, item, *arguments)` for every item, in their order, computed in parallel if possible.

        Args:
            name: The name that dashboards show.
            function: A module-level function.
            items: Its second arguments, one a call.
            arguments: Its further arguments; the value of a `Shared` one is passed.
        """
        return [self.call(name, function, item, *arguments) for item in items]

    @abstractmethod
    def shard_pool(
        self, study: Study, run: RunDirectory, progress: ProgressReporter
    ) -> AbstractContextManager[ShardPool]:
        """Return a context with workers that calibrate a study of one draw; they stop when it ends."""

    @abstractmethod
    def run_trials(
        self, inputs: SweepInputs, groups: Sequence[TrialGroup], state: SweepState, refresh: Callable[[], None]
    ) -> None:
        """Run trials, and write each to the store, failed ones too.

        Args:
            inputs: The inputs of all trials.
            groups: Groups of trials that run together because they share stages.
            state: The counts, kept up to date here.
            refresh: To be called whenever the state has changed.
        """
