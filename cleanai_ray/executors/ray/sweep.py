"""Every trial of a study through Ray Tune, in parallel within the resources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray import tune
from ray.tune.trainable import wrap_function

from cleanai_ray.config.study import Study, Trial
from cleanai_ray.executors.ray.cluster import Cluster, assigned_device, concurrent_trials
from cleanai_ray.executors.ray.files import record_name
from cleanai_ray.executors.ray.progress import Narrator, SweepState
from cleanai_ray.executors.ray.trial_work import RECORDED, Siblings, SweepInputs, carry_out, epoch_numbers, numbers_of
from cleanai_ray.executors.ray.worker_group import COORDINATOR_BYTES, run_gang_trial
from cleanai_ray.executors.ray.writer import lacks_model
from cleanai_ray.stages.fingerprints import trial_key
from cleanai_ray.stages.siblings import group_siblings
from cleanai_ray.stages.trial import failed_outcome
from cleanai_ray.stages.workspace import Workspace
from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.training.context import LocalContext

_MAX_CRASHES = 2
"""How often a trial whose process died is begun again, from its last checkpoint."""


def completed_records(study: Study, run: RunDirectory, dense_digest: str) -> dict[str, dict[str, Any]]:
    """Return the records of trials that are complete for exactly these inputs, with the models to be kept."""
    records = {}
    for trial in study.trials():
        name = record_name(trial.trial_id)
        if run.is_complete(name, trial_key(study, trial, dense_digest)):
            records[trial.trial_id] = run.read_json(name)
    rows = [record["row"] for record in records.values()]
    for trial_id in lacks_model(rows, study.output.save_models, run):
        del records[trial_id]
    return records


def run_sweep(
    inputs: SweepInputs, run: RunDirectory, cluster: Cluster, narrator: Narrator
) -> tuple[dict[str, dict[str, Any]], int]:
    """Run the trials that are not complete yet; return the records of all, by trial id, and how many were complete.

    Args:
        inputs: What all trials get.
        run: The run directory; trials are written to it as they end.
        cluster: The connected cluster.
        narrator: Told of every trial that ends.
    """
    study, writer = inputs.study, inputs.writer
    done = completed_records(study, run, inputs.dense_digest)
    todo = [trial for trial in study.trials() if trial.trial_id not in done]
    if done:
        narrator.complete([record["row"] for record in done.values()], len(done) + len(todo))
    groups = _siblings(study, todo)
    together = [siblings for siblings in groups if siblings.trials]
    # A driver that was killed had no time to.
    finished = [inputs.checkpoint(siblings.owner) for siblings in groups if not siblings.trials]
    ray.get(writer.forget_checkpoints.remote(finished))
    if todo:
        ray.get(writer.begin_sweep.remote(list(done)))
        state = SweepState(total=len(todo), workers=concurrent_trials(study, cluster))
        with narrator.sweep(state) as refresh:
            callback = _ProgressCallback(state, refresh)
            grid = _tuner(inputs, together, run, state.workers, callback).fit()
            _record_crashes(inputs, grid)
            refresh()
    names = [trial.trial_id for trial in study.trials()]
    return {name: done.get(name) or run.read_json(record_name(name)) for name in names}, len(done)


def _siblings(study: Study, todo: Sequence[Trial]) -> list[Siblings]:
    """Return the trials to run, those together that differ in quantisation alone; of some groups there are none."""
    names = {trial.trial_id for trial in todo}
    return [
        Siblings(owner=group[0], trials=tuple(trial for trial in group if trial.trial_id in names))
        for group in group_siblings(study, study.trials())
    ]


def _tuner(
    inputs: SweepInputs, together: Sequence[Siblings], run: RunDirectory, workers: int, callback: tune.Callback
) -> tune.Tuner:
    study, (path, filesystem) = inputs.study, run.storage()
    # What waits for room is seen by an autoscaler, and nodes that come later are used; workers that start together
    # are not asked for before there is room.
    is_bounded = study.workers_per_trial > 1 or study.resources.max_concurrent_trials != "auto"
    return tune.Tuner(
        _trainable(inputs),
        param_space={"siblings": tune.grid_search([siblings.config() for siblings in together])},
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
            callbacks=[callback],
        ),
    )


def _trainable(inputs: SweepInputs) -> type[tune.Trainable]:
    """Return what Tune's workers are, under a name that says in Ray's dashboard what they do."""
    study = inputs.study
    if study.workers_per_trial > 1:
        name, function = "TrialCoordinator", tune.with_parameters(run_gang_trial, inputs=inputs)
        resources: dict[str, float] = {"cpu": 0, "memory": COORDINATOR_BYTES}
    else:
        name, function = "PruningTrial", tune.with_parameters(_run_tune_trial, inputs=inputs)
        resources = {"cpu": study.resources.cpus_per_trial, "gpu": study.resources.gpus_per_trial}
    asked = {kind: amount for kind, amount in resources.items() if amount or kind == "cpu"}
    trainable = wrap_function(tune.with_resources(function, asked), name=f"trials of {study.name}")
    trainable.__name__ = trainable.__qualname__ = name
    return trainable


def _trial_name(tune_trial: Any) -> str:
    return Siblings.of(tune_trial.config).owner.trial_id


def _run_tune_trial(config: dict[str, Any], *, inputs: SweepInputs) -> None:
    """Run one trial, or those that differ in quantisation alone, in a Tune worker."""
    siblings = Siblings.of(config)

    def context(workspace: Workspace) -> LocalContext:
        checkpoints = inputs.checkpoints(siblings.owner)
        return LocalContext(device=workspace.device, on_row=_report_epoch, checkpoints=checkpoints)

    for trial, outcome in carry_out(inputs, inputs.unrecorded(siblings.trials), assigned_device(), context):
        inputs.send(trial, outcome)
        tune.report(numbers_of(outcome.row))
    inputs.forget_checkpoints(siblings)


def _report_epoch(row: Mapping[str, Any]) -> None:
    tune.report(epoch_numbers(row))


def _record_crashes(inputs: SweepInputs, grid: tune.ResultGrid) -> None:
    """Give a record to each trial whose process died before it could send one."""
    for result in (grid[index] for index in range(len(grid))):
        if result.error is None or not result.config:
            continue
        told = str(result.error).strip().splitlines()[-1]
        reason = told.partition(" Some common causes")[0].removeprefix("The actor is dead because ")
        for trial in inputs.unrecorded(Siblings.of(result.config).trials):
            outcome = failed_outcome(
                inputs.study,
                trial,
                "the trial's process ended before it was done, most often for want of memory or by a crash in a "
                f"library; Ray says: {reason}",
            )
            record = {name: getattr(outcome, name) for name in RECORDED}
            ray.get(inputs.writer.write.remote(record, "", None, None))


class _ProgressCallback(tune.Callback):
    """Keeps the state of the sweep up to date."""

    def __init__(self, state: SweepState, refresh: Any) -> None:
        self._state = state
        self._refresh = refresh
        self._ended: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the screen behind: Tune pickles its callbacks with the experiment."""
        return {"_state": None, "_refresh": None, "_ended": set()}

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        """Count the trials that run."""
        self._state.running = sum(len(self._others(trial)) for trial in trials if trial.status == "RUNNING")
        self._refresh()

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Count a trial that ended by itself; Tune's own may be several that differ in quantisation alone."""
        name = result.get("name")
        if name is not None and name not in self._ended:
            self._ended.add(name)
            numbers = {key: result.get(key) for key in ("status", "accuracy", "macs")}
            self._state.finish({**numbers, "trial_id": name})
        self._refresh()

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Count the trials that had a record, but no time to tell of it, when a process died that was replaced."""
        for name in self._others(trial):
            self._ended.add(name)
            self._state.done += 1
        self._refresh()

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Count the trials that were not done when their process died."""
        for name in self._others(trial):
            self._ended.add(name)
            self._state.finish({"status": schemas.FAILED})
        self._refresh()

    def _others(self, trial: Any) -> list[str]:
        """Return the trials among those of one of Tune's that have not ended."""
        names = [one.trial_id for one in Siblings.of(trial.config).trials]
        return [name for name in names if name not in self._ended]
