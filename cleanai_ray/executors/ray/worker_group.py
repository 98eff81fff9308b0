"""Trials whose fine-tuning runs on several workers at a time, with Ray Train.

A Tune trial of this kind computes nothing: it waits for a `TorchTrainer`, whose workers are placed all at once or not
at all, so that trials never hold what others wait for. The first worker prunes and repairs; all fine-tune and score.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray
import ray.train
import ray.train.torch
import ray.tune
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import PreemptionError
from ray.tune.integration.ray_train import TuneReportCallback

from cleanai_ray.executors.ray.cluster import workers_to_ask_for
from cleanai_ray.executors.ray.trial_work import (
    Siblings,
    SweepInputs,
    carry_out,
    dense_model_of,
    describe_error,
    epoch_numbers,
    numbers_of,
)
from cleanai_ray.stages.followers import follow_trial
from cleanai_ray.stages.trial import failed_outcome
from cleanai_ray.stages.workspace import open_workspace
from cleanai_ray.storage import schemas
from cleanai_ray.training.processes import ProcessGroupContext

_LOG = logging.getLogger(__name__)
COORDINATOR_BYTES = 10**9
"""Memory that the process which waits for a trial's workers asks for; it takes no core."""

_MAX_FAILURES = 2
_PATIENCE = 24 * 3600
"""Seconds for which workers wait for the first one, which prunes, repairs, quantises and times alone; that it is gone
they hear from Ray."""

_TRAIN_FOLDER = "train"


def run_gang_trial(config: dict[str, Any], *, inputs: SweepInputs) -> None:
    """Run one trial, or those that differ in quantisation alone, on several workers, from a Tune worker that waits.

    When a worker or its node is lost, the others are stopped, and as many as the nodes that are left hold begin again
    from the last checkpoint. Their number changes no batch, only who computes which part of it.
    """
    siblings, study, num_failures, lost_some = Siblings.of(config), inputs.study, 0, False
    while num_failures <= _MAX_FAILURES:
        left = replace(siblings, trials=inputs.unrecorded(siblings.trials))
        try:
            if left.trials:
                _trainer(inputs, left, workers_to_ask_for(study, lost_some=lost_some)).fit()
            inputs.forget_checkpoints(siblings)
            return
        except ray.train.TrainingFailedError as error:
            cause = describe_error(_cause(error))
            _LOG.warning("the workers of trial %s begin again: %s", siblings.owner.trial_id, cause)
            lost_some = True
            num_failures += not _is_for_want_of_a_node(error)
    reason = f"its {study.finetune.num_workers} workers failed {num_failures} times, the last time with {cause}"
    for trial in inputs.unrecorded(siblings.trials):
        outcome = failed_outcome(study, trial, reason)
        inputs.send(trial, outcome)
        ray.tune.report(numbers_of(outcome.row))


def _cause(error: ray.train.TrainingFailedError) -> BaseException:
    """Return what the first of the workers, or what controls them, raised."""
    failures = getattr(error, "worker_failures", {}) or {0: getattr(error, "controller_failure", error)}
    return next(iter(failures.values()))


def _is_for_want_of_a_node(error: ray.train.TrainingFailedError) -> bool:
    """Whether a node is about to leave, or there was no room for all workers within a minute: no fault of the trial."""
    return isinstance(error, PreemptionError) or isinstance(_cause(error), WorkerGroupStartupTimeoutError)


def _trainer(inputs: SweepInputs, siblings: Siblings, num_workers: int) -> TorchTrainer:
    wanted = inputs.study.resources
    per_worker = {"CPU": wanted.cpus_per_trial, "GPU": wanted.gpus_per_trial}
    path, filesystem = inputs.files.storage(_TRAIN_FOLDER)
    return TorchTrainer(
        _work,
        train_loop_config={"siblings": siblings, "inputs": inputs},
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers,
            use_gpu=wanted.gpus_per_trial > 0,
            resources_per_worker={name: value for name, value in per_worker.items() if value},
        ),
        torch_config=TorchConfig(backend="nccl" if wanted.gpus_per_trial else "gloo", timeout_s=_PATIENCE),
        run_config=ray.train.RunConfig(
            name=f"{siblings.owner.trial_id}-{inputs.key(siblings.owner)}",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=0),
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]
        ),
    )


def _work(config: dict[str, Any]) -> None:
    """Do one worker's part of a trial, or of those that differ in quantisation alone."""
    inputs: SweepInputs = config["inputs"]
    siblings: Siblings = config["siblings"]
    device = ray.train.torch.get_device()
    context = ProcessGroupContext(device=device, on_row=_report_epoch, checkpoints=inputs.checkpoints(siblings.owner))
    # All workers report as often: what the first one does counts.
    for numbers in (_lead if context.rank == 0 else _follow)(inputs, siblings, context):
        ray.train.report(numbers)


def _lead(inputs: SweepInputs, siblings: Siblings, context: ProcessGroupContext) -> list[dict[str, Any]]:
    """Run the trials; the others join in where they fine-tune and score. An error they do not know of is raised."""
    device, numbers = str(context.device), []
    for trial, outcome in carry_out(
        inputs, siblings.trials, device, lambda _: context, lambda error: context.is_awaited
    ):
        inputs.send(trial, outcome)
        numbers.append(numbers_of(outcome.row))
    context.dismiss()
    return numbers


def _follow(inputs: SweepInputs, siblings: Siblings, context: ProcessGroupContext) -> list[dict[str, Any]]:
    """Do a share of what the first worker fine-tunes and scores."""
    trial = siblings.trials[0]
    workspace = open_workspace(inputs.study.model_dump_json(), str(context.device), inputs.study.draw_of(trial))
    dense = dense_model_of(workspace, ray.get(inputs.dense))
    follow_trial(workspace, trial, dense, context, lambda: inputs.files.note_unreadable(workspace.unreadable.found))
    return [{"status": schemas.OK} for _ in siblings.trials]


def _report_epoch(row: Mapping[str, Any]) -> None:
    ray.train.report(epoch_numbers(row))
