"""What a worker does for one trial, alone or as the first of several."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from torch import nn

from cleanai_ray.config.calibration_draw import CalibrationDraw
from cleanai_ray.config.study import Study, Trial
from cleanai_ray.deploy import require_quantization
from cleanai_ray.errors import CleanAIError
from cleanai_ray.evaluation.backends import require_backends
from cleanai_ray.executors.ray.files import CheckpointFile, RunFiles, checkpoint_name
from cleanai_ray.nn.weights import safetensors_bytes
from cleanai_ray.stages.clock import TrialClock
from cleanai_ray.stages.fingerprints import trial_key
from cleanai_ray.stages.prune_and_recover import run_float_stages
from cleanai_ray.stages.trial import DenseModel, TrialOutcome, failed_outcome, finish_trial
from cleanai_ray.stages.workspace import Workspace, open_workspace
from cleanai_ray.storage import schemas
from cleanai_ray.training.context import TrainingContext

_LOG = logging.getLogger(__name__)
RECORDED = ("row", "layers", "classes", "history", "latency")
"""What of an outcome is a trial's record: its row of results.parquet, and its rows of other tables."""

_REPORTED = ("accuracy", "accuracy_pruned", "loss", "params", "macs", "seconds_total")
_dense_models: dict[str, nn.Module] = {}


@dataclass(frozen=True, kw_only=True)
class SweepInputs:
    """What all trials of a sweep get.

    Attributes:
        study: The study.
        dense_digest: Digest of the dense weights.
        dense: Reference to the `DenseModel` in the object store.
        measures: References to the `DenseMeasures` there, by draw of the calibration samples.
        files: The run directory, as workers reach it.
        writer: Handle of the process that writes trials.
    """

    study: Study
    dense_digest: str
    dense: Any
    measures: Mapping[CalibrationDraw, Any]
    files: RunFiles
    writer: Any

    def key(self, trial: Trial) -> str:
        """Return the digest of everything that a trial depends on."""
        return trial_key(self.study, trial, self.dense_digest)

    def checkpoint(self, owner: Trial) -> str:
        """Return the file that keeps the fine-tuning of a trial and of those that differ in quantisation alone."""
        return checkpoint_name(owner.trial_id, self.key(owner))

    def checkpoints(self, owner: Trial) -> CheckpointFile:
        """Return where that fine-tuning keeps its checkpoints."""
        return CheckpointFile(self.files, self.checkpoint(owner))

    def unrecorded(self, trials: Iterable[Trial]) -> tuple[Trial, ...]:
        """Return those trials that this sweep has no record of yet: a process may die between two."""
        trials = tuple(trials)
        recorded = self._recorded(trials)
        return tuple(trial for trial in trials if trial.trial_id not in recorded)

    def forget_checkpoints(self, siblings: Siblings) -> None:
        """Delete the checkpoints of trials that succeeded; those of one that failed wait for it to be run again."""
        recorded = self._recorded(siblings.trials)
        if all(recorded.get(trial.trial_id) == schemas.OK for trial in siblings.trials):
            ray.get(self.writer.forget_checkpoints.remote([self.checkpoint(siblings.owner)]))

    def _recorded(self, trials: Iterable[Trial]) -> dict[str, str]:
        return ray.get(self.writer.recorded.remote([(trial.trial_id, self.key(trial)) for trial in trials]))

    def send(self, trial: Trial, outcome: TrialOutcome) -> None:
        """Have a trial written: its record, and its model where it is to be kept."""
        record = {name: getattr(outcome, name) for name in RECORDED}
        plan = weights = quantized = None
        is_wanted = outcome.model is not None and ray.get(self.writer.wants_model.remote(outcome.row))
        if is_wanted and outcome.model is not None and outcome.plan is not None:
            weights = safetensors_bytes(outcome.model)
            plan = outcome.plan.with_weights(weights).to_json()
            quantized = outcome.quantized and (outcome.quantized.file, outcome.quantized.content)
        ray.get(self.writer.write.remote(record, self.key(trial), plan, weights, quantized))


@dataclass(frozen=True, kw_only=True)
class Siblings:
    """Trials that differ in quantisation alone, and are run together.

    Attributes:
        owner: The first of them in the study, whether it is to be run or not: it names their checkpoints.
        trials: Those to be run.
    """

    owner: Trial
    trials: tuple[Trial, ...]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Siblings:
        """Return what `config` made a configuration of Tune's from."""
        found = config["siblings"]
        trials = tuple(Trial.model_validate(trial) for trial in found["trials"])
        return cls(owner=Trial.model_validate(found["owner"]), trials=trials)

    def config(self) -> dict[str, Any]:
        """Return them as Tune's configuration holds them, under the key `siblings`."""
        trials = [trial.model_dump(mode="json") for trial in self.trials]
        return {"owner": self.owner.model_dump(mode="json"), "trials": trials}


def carry_out(
    inputs: SweepInputs,
    trials: Sequence[Trial],
    device: str,
    make_context: Callable[[Workspace], TrainingContext],
    must_raise: Callable[[Exception], bool] = lambda error: False,
) -> Iterator[tuple[Trial, TrialOutcome]]:
    """Run trials in this process that differ in quantisation alone, and yield each with its outcome.

    A trial that fails has an outcome like any other; where their common part fails, all have.

    Args:
        inputs: What all trials get.
        trials: The trials.
        device: Where this process computes.
        make_context: Returns the surroundings of the fine-tuning.
        must_raise: Whether an error is not to become an outcome.
    """

    def failed(trial: Trial, error: Exception) -> tuple[Trial, TrialOutcome]:
        if must_raise(error):
            raise error
        if not isinstance(error, CleanAIError):
            _LOG.error("trial %s failed:\n%s", trial.trial_id, "".join(traceback.format_exception(error)))
        return trial, failed_outcome(inputs.study, trial, describe_error(error))

    left = []
    for trial in trials:
        try:
            require_quantization([trial.quantization])
            left.append(trial)
        except CleanAIError as error:
            yield failed(trial, error)
    if not left:
        return
    dense: DenseModel = ray.get(inputs.dense)
    try:
        draw = inputs.study.draw_of(left[0])
        workspace = open_workspace(inputs.study.model_dump_json(), device, draw)
        if inputs.study.evaluation.latency is not None:
            require_backends(inputs.study.evaluation.latency, workspace.device)
        model, measures = dense_model_of(workspace, dense), ray.get(inputs.measures[draw])
        has_float = any(trial.quantization == "none" for trial in left)
        context = make_context(workspace)
        stages = run_float_stages(workspace, left[0], model, measures, context, is_compared=has_float)
    except Exception as error:
        yield from [failed(trial, error) for trial in left]
        return
    for trial in left:
        try:
            found = trial, finish_trial(workspace, trial, dense, model, stages)
            inputs.files.note_unreadable(workspace.unreadable.found)
        except Exception as error:
            found = failed(trial, error)
        yield found
        stages = replace(stages, clock=TrialClock())


def describe_error(error: BaseException) -> str:
    """Return an error in a line, with its kind where it is not one of this package's own."""
    text = " ".join(str(error).split())
    return text if isinstance(error, CleanAIError) else f"{type(error).__name__}: {text}"


def dense_model_of(workspace: Workspace, dense: DenseModel) -> nn.Module:
    """Return the dense model on the device; a process that runs several trials keeps it."""
    key = f"{dense.digest}/{workspace.device}"
    if key not in _dense_models:
        _dense_models.clear()
        _dense_models[key] = workspace.dense_model(dense.weights)
    return _dense_models[key]


def numbers_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what Tune is told of a trial at its end, given its row of results.parquet."""
    numbers = {name: row[name] for name in _REPORTED if row.get(name) is not None}
    return {"name": row["trial_id"], "status": row["status"], **numbers}


def epoch_numbers(row: Any) -> dict[str, float]:
    """Return what Tune is told of an epoch."""
    return {key: value for key, value in row.items() if isinstance(value, (int, float))}
