"""Trials that fine-tune on several workers at a time, with Ray Train.

Such a Tune trial computes nothing itself: it waits for a `TorchTrainer`, whose workers are placed all at once or not at
all, so that no trial holds resources that another one needs to start. The first worker prunes and repairs; all of them
fine-tune and score.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray
import ray.train
import ray.train.torch
import ray.tune
import torch
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError  # private: there was no room in time
from ray.train.v2.api.config import FailureConfig  # unstable: with limits that ray.air's class lacks
from ray.train.v2.api.exceptions import PreemptionError  # unstable: a node was about to leave
from ray.tune.integration.ray_train import TuneReportCallback

from cleanai_ray.config.study import Study
from cleanai_ray.executors.ray.cluster import assigned_device, free_places, places_for_workers, workers_to_ask_for
from cleanai_ray.executors.ray.fresh_process import device_faults_named, faults_recorded
from cleanai_ray.executors.ray.trial_config import epoch_numbers, group_of, numbers_of, workers_wanted
from cleanai_ray.executors.trial_work import (
    SweepInputs,
    TrialDeviceError,
    TrialGroup,
    dense_model_of,
    describe_error,
    run_group,
)
from cleanai_ray.nn.faults import is_out_of_memory
from cleanai_ray.stages.environment import worker_note
from cleanai_ray.stages.outcome import failed_outcome
from cleanai_ray.stages.secondary_workers import assist_trial
from cleanai_ray.stages.workspace import open_workspace
from cleanai_ray.storage import schemas
from cleanai_ray.training.processes import ProcessGroupContext

_LOG = logging.getLogger(__name__)
COORDINATOR_BYTES = 10**9
"""Memory reserved for the process that waits for a trial's workers; it reserves no core."""

_MAX_FAILURES = 2
_WORKER_TIMEOUT = 24 * 3600
"""Seconds that workers wait for the first one while it prunes, repairs, quantises or times alone; if it dies, Ray stops
them."""

_LOOK_AGAIN_SECONDS = 2.0
_PATIENCE_SECONDS = 120.0
_TRAIN_FOLDER = "train"


def run_with_workers(config: dict[str, Any], inputs: SweepInputs, *, has_cuda: bool) -> None:
    """Run a group of trials on several workers, from a Tune worker that waits for them.

    If memory runs out while they train together, they start again, and compute their shares of a batch in twice as many
    parts.

    When a worker or its node is lost, the other workers are stopped, and as many as the remaining nodes have room for
    start again from the last checkpoint. The number of workers changes no batch, only how it is divided.

    A group that shares out the cluster's places with the other last ones waits until it has its share.

    Args:
        config: The group, as a configuration of Tune.
        inputs: The inputs of all trials.
        has_cuda: False if torch finds none of the GPUs that Ray lists.
    """
    group, study, num_failures, lost_some, num_parts = group_of(config), inputs.study, 0, False, 1
    batch_size = study.finetune.batch_size or study.data.batch_size
    while num_failures <= _MAX_FAILURES:
        left = replace(group, trials=inputs.unrecorded(group.trials))
        try:
            if left.trials:
                wanted = _wait_for_share(study, config)
                num_workers = workers_to_ask_for(study, wanted, lost_some=lost_some)
                _trainer(inputs, left, num_workers, num_parts, has_cuda=has_cuda).fit()
            inputs.forget_checkpoints(group)
            return
        except ray.train.TrainingFailedError as error:
            cause = describe_error(_cause(error))
            _LOG.warning("the workers of trial %s start again: %s", group.owner.trial_id, cause)
            lost_some = True
            if 2 * num_parts * wanted <= batch_size and any(map(is_out_of_memory, _failures(error).values())):
                num_parts *= 2
                continue
            num_failures += not (_failed_for_lack_of_nodes(error) or isinstance(_cause(error), TrialDeviceError))
    reason = f"its {num_workers} workers failed {num_failures} times, the last time with {cause}"
    for trial in inputs.unrecorded(group.trials):
        outcome = failed_outcome(study, trial, reason)
        inputs.write(trial, outcome)
        ray.tune.report(numbers_of(outcome.row))


def _wait_for_share(study: Study, config: Mapping[str, Any]) -> int:
    """Return the number of workers of a group; if it is a share of the cluster's places, once so many are free.

    Others may keep some of the places for good: after a while in which no more became free, those that are will do.
    """
    most_free, waited = 0, 0.0
    while True:
        wanted = workers_wanted(study, config, places_for_workers(study))
        free = free_places(study)
        if wanted == study.workers_per_trial or free >= wanted:
            return wanted
        if free > most_free:
            most_free, waited = free, 0.0
        if waited >= _PATIENCE_SECONDS:
            return max(study.workers_per_trial, min(wanted, free))
        time.sleep(_LOOK_AGAIN_SECONDS)
        waited += _LOOK_AGAIN_SECONDS


def _cause(error: ray.train.TrainingFailedError) -> BaseException:
    """Return the error of the first worker that failed, or of the process that controls the workers."""
    return next(iter(_failures(error).values()))


def _failures(error: ray.train.TrainingFailedError) -> dict[int, BaseException]:
    # Unstable: WorkerGroupError has the errors of workers by rank, ControllerError has one of its own.
    return getattr(error, "worker_failures", {}) or {0: getattr(error, "controller_failure", error)}


def _failed_for_lack_of_nodes(error: ray.train.TrainingFailedError) -> bool:
    """Return whether a node was about to leave, or there was no room for the workers: neither is the trial's fault."""
    return isinstance(error, PreemptionError) or isinstance(_cause(error), WorkerGroupStartupTimeoutError)


def _trainer(
    inputs: SweepInputs, group: TrialGroup, num_workers: int, num_parts: int, *, has_cuda: bool
) -> TorchTrainer:
    wanted = inputs.study.resources
    per_worker = {"CPU": wanted.cpus_per_trial, "GPU": wanted.gpus}
    path, filesystem = inputs.store.storage(_TRAIN_FOLDER)  # type: ignore[attr-defined]  # a RemoteWriter
    return TorchTrainer(
        _work,
        train_loop_config={"group": group, "inputs": inputs, "num_parts": num_parts},
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers,
            use_gpu=wanted.gpus > 0,
            resources_per_worker={name: value for name, value in per_worker.items() if value},
        ),
        torch_config=TorchConfig(
            backend="nccl" if wanted.gpus and has_cuda else "gloo",
            timeout_s=_WORKER_TIMEOUT,
        ),
        run_config=ray.train.RunConfig(
            name=f"{group.owner.trial_id}-{inputs.key(group.owner)}",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0, controller_failure_limit=0),
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]
        ),
    )


def _work(config: dict[str, Any]) -> None:
    """Do one worker's part of a group of trials."""
    inputs: SweepInputs = config["inputs"]
    group: TrialGroup = config["group"]
    device = torch.device(assigned_device())
    context = ProcessGroupContext(device=device, on_row=_report_epoch, checkpoints=inputs.checkpoints(group.owner))
    context.num_parts = config["num_parts"]
    # All workers must report equally often; Ray uses the numbers of the first one.
    for numbers in (_lead if context.rank == 0 else _assist)(inputs, group, context):
        ray.train.report(numbers)


def _lead(inputs: SweepInputs, group: TrialGroup, context: ProcessGroupContext) -> list[dict[str, Any]]:
    """Run the trials, with the other workers' help; raise an error that comes while they wait for this one."""
    device, numbers = str(context.device), []
    with device_faults_named(), faults_recorded(inputs, lambda outcome: None):
        found = run_group(inputs, group.trials, device, lambda _: context, lambda error: context.is_awaited)
        for trial, outcome in found:
            inputs.write(trial, outcome)
            numbers.append(numbers_of(outcome.row))
    context.dismiss()
    return numbers


def _assist(inputs: SweepInputs, group: TrialGroup, context: ProcessGroupContext) -> list[dict[str, Any]]:
    """Help the first worker to fine-tune and score."""
    trial = group.trials[0]
    workspace = open_workspace(inputs.study.model_dump_json(), str(context.device), inputs.study.draw_of(trial))
    dense = inputs.dense.get()
    inputs.store.note("workers", worker_note(workspace))

    def note() -> None:
        inputs.store.note_unreadable(workspace.unreadable.found)

    assist_trial(workspace, trial, dense_model_of(workspace, dense), dense.logits, context, note)
    return [{"status": schemas.OK} for _ in group.trials]


def _report_epoch(row: Mapping[str, Any]) -> None:
    ray.train.report(epoch_numbers(row))
