"""The local executor: everything runs in this process, one thing after another, without Ray."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from cleanai_ray.analysis.numbers import plural
from cleanai_ray.config.study import Study, Trial
from cleanai_ray.data.loader_processes import assign_cpus
from cleanai_ray.errors import ClusterError
from cleanai_ray.executors.base import Executor, Resources, ShardPool, ShardWork
from cleanai_ray.executors.calibration_worker import CalibrationWorker
from cleanai_ray.executors.counts import SweepState
from cleanai_ray.executors.placement import Allotment
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.executors.shared import Shared, values_of
from cleanai_ray.executors.trial_work import SweepInputs, TrialDeviceError, TrialGroup, run_group
from cleanai_ray.executors.writer import RunWriter
from cleanai_ray.nn.allocator import keep_freed_memory
from cleanai_ray.nn.batch_limit import process_limit
from cleanai_ray.registry import EXECUTORS
from cleanai_ray.stages.numerics import restore_numerics
from cleanai_ray.stages.outcome import TrialOutcome, failed_outcome
from cleanai_ray.stages.workspace import Workspace
from cleanai_ray.statistics.merging import MergeTree
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.training.context import LocalContext

_RUN_AGAIN = (
    "the local executor cannot replace its process: the same command runs what is left in a new one, and "
    "--executor ray replaces processes by itself"
)


@dataclass(frozen=True)
class LocalValue(Shared[Any]):
    """A value in this process.

    Attributes:
        value: The value.
    """

    value: Any

    def get(self) -> Any:
        """Return the value."""
        return self.value


class LocalShardPool(ShardPool):
    """Computes shards in this process, in their order.

    Args:
        worker: Computes shards and adds them up.
        run: The run directory.
        progress: Notified of every finished shard.
    """

    def __init__(self, worker: CalibrationWorker, run: RunDirectory, progress: ProgressReporter) -> None:
        super().__init__(run, progress)
        self._worker = worker

    def sum_shards(self, work: ShardWork, *arguments: Any) -> bytes:
        """Compute every shard, and return the sum of the results, equal to the bit for any number of workers."""
        tree, given = MergeTree(work.num_shards), values_of(arguments)
        with _torch_threads(1), self.progress.shards(work.title, work.num_shards) as on_shard:
            for shard in range(work.num_shards):
                samples, content = self._worker.compute(work.call, shard, work.file(shard), work.inputs, *given)
                tree.put((0, shard), content)
                while (node := tree.take_ready()) is not None:
                    _, total = self._worker.add(work.call, *(tree.value(child) for child in tree.children(node)))
                    tree.put(node, total)
                on_shard(shard + 1, work.num_shards, samples)
        return tree.value(tree.root)


class LocalExecutor(Executor):
    """Runs a study in this process.

    The process cannot be replaced: when a GPU fails, the trials that are left fail as well, each with a sentence that
    says so, and the same command runs them in a new process. (On the CPU, they could take days for hours.)

    A trial for several workers runs in this process alone: the number of workers changes no batch, only how it is
    divided. Torch uses as many threads as on Ray, so that results are the same.

    Args:
        study: The study.
        run: The run directory.
    """

    def __init__(self, study: Study, run: RunDirectory) -> None:
        self._fault = ""
        self.store = RunWriter(run.location, study)
        num_gpus = torch.cuda.device_count() if study.resources.uses_gpus else 0
        self._best_device = "cuda:0" if num_gpus else "cpu"
        cores = os.cpu_count() or 1
        assign_cpus(cores if num_gpus else 1)
        if not num_gpus:
            keep_freed_memory()
        self.resources = Resources(
            num_nodes=1,
            cpus=cores,
            gpus=num_gpus,
            description=f"local executor: this process, {plural(cores, 'CPU')}, {plural(num_gpus, 'GPU')}",
        )

    def check(self, study: Study) -> None:
        """Refuse a study whose trials ask for more GPUs than this machine has.

        Raises:
            ClusterError: When there are too few.
        """
        wanted = study.resources.gpus
        if wanted > self.resources.gpus:
            raise ClusterError(
                f"resources.gpus_per_trial is {wanted:g}, and this machine has {self.resources.gpus:g} GPUs; "
                f"allowed: at most {self.resources.gpus:g}"
            )

    def notices(self, study: Study) -> list[str]:
        """Return a sentence if the study has trackers, which Ray's callbacks report to."""
        services = ", ".join(f"tracking.{name}" for name in study.tracking.services)
        return [f"{services}: nothing is reported by the local executor; --executor ray reports"] if services else []

    def allot(self, study: Study, num_trials: int, measure: Callable[[], int]) -> Allotment:
        """Give every trial the GPU, if the study uses one: only one trial runs at a time."""
        return Allotment(cpus=study.resources.cpus_per_trial, gpus=float(self._best_device != "cpu"))

    def concurrent_trials(self, study: Study) -> int:
        """Return 1."""
        return 1

    def share(self, value: Any) -> Shared[Any]:
        """Return a handle to the value itself."""
        return LocalValue(value)

    def call(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call the function, on a GPU if there is one, else with all cores."""
        with _torch_threads(1 if self.resources.gpus else int(self.resources.cpus)):
            return function(self._best_device, *values_of(arguments))

    def map(self, name: str, function: Callable[..., Any], items: Sequence[Any], *arguments: Any) -> list[Any]:
        """Call the function for one item after another, with one thread, as in Ray's tasks."""
        given = values_of(arguments)
        with _torch_threads(1):
            return [function(self._best_device, item, *given) for item in items]

    @contextmanager
    def shard_pool(self, study: Study, run: RunDirectory, progress: ProgressReporter) -> Iterator[ShardPool]:
        """Yield a pool that computes shards in this process."""
        worker = CalibrationWorker(study.model_dump_json(), self.store, self._best_device)
        yield LocalShardPool(worker, run, progress)

    def run_trials(
        self, inputs: SweepInputs, groups: Sequence[TrialGroup], state: SweepState, refresh: Callable[[], None]
    ) -> None:
        """Run trials one after another."""
        resources = inputs.study.resources
        device = self._best_device if resources.uses_gpus else "cpu"
        with _torch_threads(max(1, int(resources.cpus_per_trial))):
            for group in groups:
                self._run_group(inputs, group, device, state, refresh)

    def _run_group(
        self, inputs: SweepInputs, group: TrialGroup, device: str, state: SweepState, refresh: Callable[[], None]
    ) -> None:
        def context(workspace: Workspace) -> LocalContext:
            return LocalContext(device=workspace.device, checkpoints=inputs.checkpoints(group.owner))

        def record(trial: Trial, outcome: TrialOutcome) -> None:
            inputs.write(trial, outcome)
            state.finish(outcome.row)
            refresh()

        state.running = 1
        refresh()
        left = list(group.trials)
        try:
            for trial, outcome in run_group(inputs, [] if self._fault else group.trials, device, context):
                record(trial, outcome)
                left.remove(trial)
        except TrialDeviceError as error:
            self._fault = f"trial {error.trial.trial_id} ended this process's use of its GPU ({error.reason})"
            record(error.trial, failed_outcome(inputs.study, error.trial, f"{error.reason}; {_RUN_AGAIN}"))
            left.remove(error.trial)
        if self._fault:
            for trial in left:
                record(trial, failed_outcome(inputs.study, trial, f"not run, since {self._fault}; {_RUN_AGAIN}"))
        state.running = 0
        inputs.forget_checkpoints(group)


@EXECUTORS.register("local")
@contextmanager
def open_local(study: Study, run: RunDirectory, address: str | None = None) -> Iterator[Executor]:
    """In this process, one thing after another, without Ray: for debugging and small studies.

    Raises:
        ClusterError: When an address is given.
    """
    if address is not None:
        raise ClusterError(
            f"--address is '{address}', but --executor is 'local'; allowed: --executor ray, or no --address"
        )
    try:
        yield LocalExecutor(study, run)
    finally:
        restore_numerics()
        process_limit.size = None


@contextmanager
def _torch_threads(number: int) -> Iterator[None]:
    """Let torch use a number of threads; if OMP_NUM_THREADS is set, it takes precedence, as in Ray's workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", number)))
    try:
        yield
    finally:
        torch.set_num_threads(before)
