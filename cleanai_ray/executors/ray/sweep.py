"""The trials of a study, run by Ray Tune in parallel within the resources."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.trainable import wrap_function

from cleanai_ray.config.study import Study
from cleanai_ray.executors.counts import SweepState
from cleanai_ray.executors.ray.cluster import assigned_device, places_for_workers
from cleanai_ray.executors.ray.fresh_process import faults_recorded, replaced_by_tune
from cleanai_ray.executors.ray.gpu_share import limit_gpu_memory
from cleanai_ray.executors.ray.tracking import tracking_callbacks
from cleanai_ray.executors.ray.trial_config import configurations, epoch_numbers, group_of, numbers_of, takes_workers
from cleanai_ray.executors.ray.trial_workers import COORDINATOR_BYTES, run_with_workers
from cleanai_ray.executors.trial_work import SweepInputs, TrialGroup, run_group
from cleanai_ray.stages.outcome import TrialOutcome, failed_outcome
from cleanai_ray.stages.workspace import Workspace
from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.training.context import LocalContext

_MAX_CRASHES = 2
"""How often a trial whose process died is started again from its last checkpoint."""


def run_sweep_on_ray(
    inputs: SweepInputs,
    groups: Sequence[TrialGroup],
    run: RunDirectory,
    state: SweepState,
    refresh: Callable[[], None],
    *,
    has_cuda: bool,
) -> None:
    """Run each group of trials as one trial of Tune, and record the trials whose process died.

    Args:
        inputs: The inputs of all trials.
        groups: The groups.
        run: The run directory.
        state: The counts, kept up to date here.
        refresh: To be called whenever the state has changed.
        has_cuda: False if torch finds none of the GPUs that Ray lists.
    """
    callback = _ProgressCallback(state, refresh)
    trainable = _trainable(inputs, has_cuda=has_cuda)
    grid = _tuner(trainable, inputs.study, groups, run, state.workers, callback).fit()
    _record_crashes(inputs, grid)


def _tuner(
    trainable: type[tune.Trainable],
    study: Study,
    groups: Sequence[TrialGroup],
    run: RunDirectory,
    workers: int,
    callback: tune.Callback,
) -> tune.Tuner:
    path, filesystem = run.storage()
    # Unbounded, all trials are requested at once, so that an autoscaler sees them and nodes that join later are used.
    # Groups of workers are requested only when there is room for them.
    is_bounded = study.workers_per_trial > 1 or study.resources.max_concurrent_trials != "auto"
    return tune.Tuner(
        trainable,
        param_space={"trials": tune.grid_search(configurations(study, groups, places_for_workers(study)))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=workers if is_bounded else None,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=tune.FailureConfig(max_failures=_MAX_CRASHES),
            verbose=0,
            callbacks=[callback, *tracking_callbacks(study, run)],
        ),
    )


def _trainable(inputs: SweepInputs, *, has_cuda: bool) -> type[tune.Trainable]:
    """Return the class of Tune's workers, with a name that says what they do in Ray's dashboard."""
    study = inputs.study

    def resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        if takes_workers(study, config):
            return tune.PlacementGroupFactory([{"CPU": 0, "memory": COORDINATOR_BYTES}])
        asked = {"CPU": study.resources.cpus_per_trial, "GPU": study.resources.gpus}
        return tune.PlacementGroupFactory([{kind: amount for kind, amount in asked.items() if amount}])

    function = tune.with_parameters(_run_tune_trial, inputs=inputs, has_cuda=has_cuda)
    # Unstable: the class that Tune itself makes of a function; made here so that it can be given another name.
    trainable = wrap_function(tune.with_resources(function, resources), name=f"trials of {study.name}")
    trainable.__name__ = trainable.__qualname__ = "TrialCoordinator" if study.workers_per_trial > 1 else "PruningTrial"
    return trainable


def _trial_name(tune_trial: Any) -> str:
    return group_of(tune_trial.config).owner.trial_id


def _run_tune_trial(config: dict[str, Any], *, inputs: SweepInputs, has_cuda: bool) -> None:
    """Run a group of trials in a Tune worker, or on several workers for which this one waits.

    When a GPU fails, another process runs the trial once more, and then those that are left; see `replaced_by_tune`.
    """
    if takes_workers(inputs.study, config):
        run_with_workers(config, inputs, has_cuda=has_cuda)
        return
    group = group_of(config)

    def context(workspace: Workspace) -> LocalContext:
        checkpoints = inputs.checkpoints(group.owner)
        return LocalContext(device=workspace.device, on_row=_report_epoch, checkpoints=checkpoints)

    def report(outcome: TrialOutcome) -> None:
        tune.report(numbers_of(outcome.row))

    limit_gpu_memory()
    with replaced_by_tune(), faults_recorded(inputs, report):
        for trial, outcome in run_group(inputs, inputs.unrecorded(group.trials), assigned_device(), context):
            inputs.write(trial, outcome)
            report(outcome)
    inputs.forget_checkpoints(group)


def _report_epoch(row: Mapping[str, Any]) -> None:
    tune.report(epoch_numbers(row))


def _record_crashes(inputs: SweepInputs, grid: tune.ResultGrid) -> None:
    """Record every trial whose process died before it had recorded it."""
    for result in (grid[index] for index in range(len(grid))):
        if result.error is None or not result.config:
            continue
        message = str(result.error).strip().splitlines()[-1]
        reason = message.partition(" Some common causes")[0].removeprefix("The actor is dead because ")
        for trial in inputs.unrecorded(group_of(result.config).trials):
            outcome = failed_outcome(
                inputs.study,
                trial,
                "the trial's process died before the trial was done, most often because memory ran out or a library "
                f"crashed; Ray says: {reason}",
            )
            inputs.write(trial, outcome, is_final=False)


class _ProgressCallback(tune.Callback):
    """Keeps the state of the sweep up to date."""

    def __init__(self, state: SweepState, refresh: Any) -> None:
        self._state = state
        self._refresh = refresh
        self._ended: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the screen: Tune pickles its callbacks with the experiment."""
        return {"_state": None, "_refresh": None, "_ended": set()}

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        """Count the trials that run."""
        self._state.running = sum(len(self._trials_not_ended(trial)) for trial in trials if trial.status == "RUNNING")
        self._refresh()

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Count a trial that reported its end; one trial of Tune may be a group of ours."""
        name = result.get("name")
        if name is not None and name not in self._ended:
            self._ended.add(name)
            keys = ("status", "metric", "score", "accuracy", "macs", "control", "seconds_total")
            self._state.finish({**{key: result.get(key) for key in keys}, "trial_id": name})
        self._refresh()

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Count the trials that a process recorded but could not report before it died."""
        for name in self._trials_not_ended(trial):
            self._ended.add(name)
            self._state.finish_unseen()
        self._refresh()

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Count as failed the trials that had not ended when their process died."""
        for name in self._trials_not_ended(trial):
            self._ended.add(name)
            self._state.finish({"status": schemas.FAILED})
        self._refresh()

    def _trials_not_ended(self, trial: Any) -> list[str]:
        """Return the ids of those trials of a Tune trial that have not ended."""
        names = [one.trial_id for one in group_of(trial.config).trials]
        return [name for name in names if name not in self._ended]
