"""The work of one worker: it runs trials that share stages, and has each written."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import polars as pl
from torch import nn

from cleanai_ray.config.calibration_draw import CalibrationDraw
from cleanai_ray.config.study import Study, Trial
from cleanai_ray.deploy import require_quantization
from cleanai_ray.errors import CleanAIError, DeviceError
from cleanai_ray.evaluation.latency import require_backends
from cleanai_ray.evaluation.target_latency import open_target
from cleanai_ray.executors.checkpoints import CheckpointFile, checkpoint_name, fault_name
from cleanai_ray.executors.shared import Shared
from cleanai_ray.executors.writer import RunStore, SavedTrialModel
from cleanai_ray.nn.faults import is_device_fault
from cleanai_ray.nn.weights import safetensors_bytes
from cleanai_ray.stages.base import TrialSetting
from cleanai_ray.stages.dense import DenseModel
from cleanai_ray.stages.dense_measures import DenseMeasures
from cleanai_ray.stages.environment import worker_note
from cleanai_ray.stages.fingerprints import trial_key
from cleanai_ray.stages.outcome import TrialOutcome, describe_outcome, failed_outcome
from cleanai_ray.stages.pipeline import group_trials, plan_stages, run_stages
from cleanai_ray.stages.workspace import Workspace, open_workspace
from cleanai_ray.storage import schemas
from cleanai_ray.training.context import TrainingContext

_LOG = logging.getLogger(__name__)
_RECORDED = ("row", "layers", "classes", "history", "latency", "hits", "removed", "blocks")
"""The parts of an outcome that make up a trial's record: its rows of the tables."""

_dense_models: dict[str, nn.Module] = {}


@dataclass(frozen=True, kw_only=True)
class TrialGroup:
    """Trials that share stages, so that one worker runs them together.

    Attributes:
        owner: The group's first trial in the study, complete or not; their checkpoints are named after it.
        trials: The trials of the group that are still to be run.
    """

    owner: Trial
    trials: tuple[Trial, ...]


def groups_to_run(study: Study, todo: Iterable[Trial]) -> list[TrialGroup]:
    """Return all groups of a study, each with those of its trials that are in `todo`, possibly none."""
    names = {trial.trial_id for trial in todo}
    return [
        TrialGroup(owner=group[0], trials=tuple(trial for trial in group if trial.trial_id in names))
        for group in group_trials(study, study.trials())
    ]


@dataclass(frozen=True, kw_only=True)
class SweepInputs:
    """The inputs of all trials of a sweep.

    Attributes:
        study: The study.
        dense_digest: Digest of the dense weights.
        dense: The dense model.
        measures: Its measurements, by draw of the calibration samples.
        store: Access to the run directory for workers.
        profile: The study's profile.parquet; None if no trial meets a latency budget.
    """

    study: Study
    dense_digest: str
    dense: Shared[DenseModel]
    measures: Mapping[CalibrationDraw, Shared[DenseMeasures]]
    store: RunStore
    profile: pl.DataFrame | None = None

    def key(self, trial: Trial) -> str:
        """Return the digest of everything that a trial depends on."""
        return trial_key(self.study, trial, self.dense_digest)

    def checkpoint(self, owner: Trial) -> str:
        """Return the file that keeps the fine-tuning of a group of trials."""
        return checkpoint_name(owner.trial_id, self.key(owner))

    def checkpoints(self, owner: Trial) -> CheckpointFile:
        """Return the checkpoint store of the group's fine-tuning."""
        return CheckpointFile(self.store, self.checkpoint(owner))

    def unrecorded(self, trials: Iterable[Trial]) -> tuple[Trial, ...]:
        """Return the trials that are not recorded yet; a process may die between two trials of a group."""
        trials = tuple(trials)
        recorded = self._recorded(trials)
        return tuple(trial for trial in trials if trial.trial_id not in recorded)

    def fail_twice(self, trial: Trial, error: DeviceError) -> TrialOutcome | None:
        """Return the outcome of a trial whose process has lost its GPU: None the first time, then a failure.

        The first time is noted in the run directory, since the process that noticed it ends.
        """
        name, key = fault_name(trial.trial_id), self.key(trial)
        first = self.store.read(name, key)
        if first is None:
            self.store.write(name, str(error).encode(), key)
            return None
        return failed_outcome(self.study, trial, f"{error}; so it was in the process before: {first.decode()}")

    def forget_checkpoints(self, group: TrialGroup) -> None:
        """Delete the checkpoints of a group if all its trials succeeded; else keep them until it is run again."""
        recorded = self._recorded(group.trials)
        if all(recorded.get(trial.trial_id) == schemas.OK for trial in group.trials):
            self.store.forget_checkpoints([self.checkpoint(group.owner)])

    def _recorded(self, trials: Iterable[Trial]) -> dict[str, str]:
        return self.store.recorded([(trial.trial_id, self.key(trial)) for trial in trials])

    def write(self, trial: Trial, outcome: TrialOutcome, *, is_final: bool = True) -> None:
        """Write a trial: its record, and its model if that is to be kept.

        Args:
            trial: The trial.
            outcome: Its outcome.
            is_final: False if the trial's process died; the record is then not valid for any inputs.
        """
        record = {name: getattr(outcome, name) for name in _RECORDED}
        model = None
        if outcome.model is not None and outcome.plan is not None and self.store.wants_model(outcome.row):
            weights, found = safetensors_bytes(outcome.model), outcome.quantized
            model = SavedTrialModel(
                plan=outcome.plan.with_weights(weights).to_json(),
                weights=weights,
                quantized=None if found is None else (found.file, found.content),
            )
        self.store.write_trial(record, self.key(trial) if is_final else "", model)


class TrialDeviceError(DeviceError):
    """A GPU failed during a trial.

    Args:
        trial: The trial.
        reason: The error, as one line.
    """

    def __init__(self, trial: Trial, reason: str) -> None:
        super().__init__(trial, reason)
        self.trial = trial
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


def run_group(
    inputs: SweepInputs,
    trials: Iterable[Trial],
    device: str,
    make_context: Callable[[Workspace], TrainingContext],
    must_raise: Callable[[Exception], bool] = lambda error: False,
) -> Iterator[tuple[Trial, TrialOutcome]]:
    """Run trials that share stages in this process, and yield each with its outcome.

    A failed trial has an outcome like any other. If a shared stage fails, all trials that share it fail. If a GPU
    fails, the process must not run another trial, and this ends with an error that names the trial.

    Args:
        inputs: The inputs of all trials.
        trials: The trials.
        device: Where this process computes.
        make_context: Returns the context in which to fine-tune and score.
        must_raise: Returns True for an error to be raised instead of becoming an outcome.

    Raises:
        TrialDeviceError: When a GPU failed.
    """

    def fail(trial: Trial, error: Exception) -> tuple[Trial, TrialOutcome]:
        if is_device_fault(error):
            raise TrialDeviceError(trial, describe_error(error)) from error
        if must_raise(error):
            raise error
        if not isinstance(error, CleanAIError):
            _LOG.error("trial %s failed:\n%s", trial.trial_id, "".join(traceback.format_exception(error)))
        traceback.clear_frames(error.__traceback__)  # they hold tensors, for as long as the error is kept
        return trial, failed_outcome(inputs.study, trial, describe_error(error))

    left = []
    for trial in trials:
        try:
            require_quantization([trial.quantization])
            left.append(trial)
        except CleanAIError as error:
            yield fail(trial, error)
    if not left:
        return
    try:
        setting = _open_setting(inputs, left[0], device, make_context)
    except Exception as error:
        yield from [fail(trial, error) for trial in left]
        return
    study, dense = setting.workspace.study, inputs.dense.get()
    for trial, state in run_stages(setting, [(trial, plan_stages(study, trial)) for trial in left]):
        try:
            if isinstance(state, Exception):
                raise state
            found = trial, describe_outcome(setting.workspace, trial, dense, state)
            inputs.store.note_unreadable(setting.workspace.unreadable.found)
        except Exception as error:
            found = fail(trial, error)
        yield found


def _open_setting(
    inputs: SweepInputs, trial: Trial, device: str, make_context: Callable[[Workspace], TrainingContext]
) -> TrialSetting:
    draw = inputs.study.draw_of(trial)
    workspace = open_workspace(inputs.study.model_dump_json(), device, draw)
    if inputs.study.evaluation.latency is not None:
        require_backends(inputs.study.evaluation.latency, workspace.device)
    if inputs.study.evaluation.target is not None:
        open_target(inputs.study.evaluation.target, workspace.device)
    dense = inputs.dense.get()
    inputs.store.note("workers", worker_note(workspace))
    return TrialSetting(
        workspace=workspace,
        dense_model=dense_model_of(workspace, dense),
        dense_logits=dense.logits,
        measures=inputs.measures[draw].get().of(trial),
        context=make_context(workspace),
        profile=inputs.profile,
    )


def describe_error(error: BaseException) -> str:
    """Return an error as one line, with its type if it is not one of this package's own."""
    text = " ".join(str(error).split())
    return text if isinstance(error, CleanAIError) else f"{type(error).__name__}: {text}"


def dense_model_of(workspace: Workspace, dense: DenseModel) -> nn.Module:
    """Return the dense model on the workspace's device; a process that runs several trials keeps it."""
    key = f"{dense.digest}/{workspace.device}"
    if key not in _dense_models:
        _dense_models.clear()
        _dense_models[key] = workspace.dense_model(dense.weights)
    return _dense_models[key]
