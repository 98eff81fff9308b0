"""Every trial of a study through Ray Tune, in parallel within the resources."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray import tune
from torch import nn

from cleanai_ray import results
from cleanai_ray.artifacts import RunDirectory
from cleanai_ray.dense_measures import DenseMeasures
from cleanai_ray.distributed.cluster import Cluster, assigned_device, concurrent_trials
from cleanai_ray.distributed.progress import Narrator, SweepState
from cleanai_ray.distributed.writer import lacks_model, record_name, start_writer
from cleanai_ray.errors import CleanAIError
from cleanai_ray.evaluation.weights import safetensors_bytes
from cleanai_ray.keys import trial_key
from cleanai_ray.stages import DenseModel, TrialOutcome, failed_outcome, run_trial
from cleanai_ray.study import Study, Trial, parse_study
from cleanai_ray.workspace import Workspace, open_workspace

_LOG = logging.getLogger(__name__)
_REPORTED = ("accuracy", "accuracy_pruned", "loss", "params", "macs", "seconds_total")
_dense_models: dict[str, nn.Module] = {}


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
    study: Study,
    dense: DenseModel,
    dense_reference: Any,
    measures_reference: Any,
    run: RunDirectory,
    cluster: Cluster,
    narrator: Narrator,
) -> dict[str, dict[str, Any]]:
    """Run the trials that are not complete yet, and return the records of all, by trial id.

    Args:
        study: The study.
        dense: The dense model.
        dense_reference: Reference to it in the object store.
        measures_reference: Reference to what was measured on it for all trials.
        run: The run directory; trials are written to it as they end.
        cluster: The connected cluster.
        narrator: Told of every trial that ends.
    """
    done = completed_records(study, run, dense.digest)
    todo = [trial for trial in study.trials() if trial.trial_id not in done]
    if done:
        narrator.say(f"{len(done)} of {len(done) + len(todo)} trials were complete already")
    if todo:
        rows = [record["row"] for record in done.values()]
        writer = start_writer(run.location, study.output.save_models, rows, cluster.driver_node)
        state = SweepState(total=len(todo), workers=concurrent_trials(study, cluster))
        with narrator.sweep(state) as refresh:
            callback = _ProgressCallback(state, refresh)
            references = {"dense": dense_reference, "measures": measures_reference}
            grid = _tuner(study, todo, references, writer, run, state.workers, callback).fit()
            _record_crashes(todo, grid, writer)
            refresh()
        ray.kill(writer)
    names = [trial.trial_id for trial in study.trials()]
    return {name: done.get(name) or run.read_json(record_name(name)) for name in names}


def _tuner(
    study: Study,
    trials: Sequence[Trial],
    references: Mapping[str, Any],
    writer: Any,
    run: RunDirectory,
    workers: int,
    callback: tune.Callback,
) -> tune.Tuner:
    trainable = tune.with_parameters(
        _run_tune_trial,
        study_json=study.model_dump_json(),
        references=references,
        writer=writer,
    )
    wanted = study.resources
    resources = {"cpu": wanted.cpus_per_trial, "gpu": wanted.gpus_per_trial}
    storage = str(run.local_path()) if run.is_local else run.location.rstrip("/")
    return tune.Tuner(
        tune.with_resources(trainable, {key: value for key, value in resources.items() if value}),
        param_space={"trial": tune.grid_search([trial.model_dump(mode="json") for trial in trials])},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=workers,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(name="tune", storage_path=storage, verbose=0, callbacks=[callback]),
    )


def _trial_name(tune_trial: Any) -> str:
    return Trial.model_validate(tune_trial.config["trial"]).trial_id


def _run_tune_trial(config: dict[str, Any], *, study_json: str, references: dict[str, Any], writer: Any) -> None:
    """Run one trial in a Tune worker. A trial that fails is a record like any other."""
    trial = Trial.model_validate(config["trial"])
    dense: DenseModel = ray.get(references["dense"])
    measures: DenseMeasures = ray.get(references["measures"])
    try:
        workspace = open_workspace(study_json, assigned_device())
        outcome = run_trial(workspace, trial, dense, _dense_model(workspace, dense), measures, report=_report_epoch)
    except CleanAIError as error:
        outcome = failed_outcome(trial, str(error))
    except Exception as error:
        _LOG.error("trial %s failed:\n%s", trial.trial_id, traceback.format_exc())
        outcome = failed_outcome(trial, f"{type(error).__name__}: {' '.join(str(error).split())}")
    key = trial_key(parse_study(json.loads(study_json)), trial, dense.digest)
    _send(writer, outcome, key)
    numbers = {name: outcome.row[name] for name in _REPORTED if outcome.row.get(name) is not None}
    tune.report({"status": outcome.row["status"], **numbers})


def _dense_model(workspace: Workspace, dense: DenseModel) -> nn.Module:
    """Return the dense model on the device; a process that runs several trials keeps it."""
    key = f"{dense.digest}/{workspace.device}"
    if key not in _dense_models:
        _dense_models.clear()
        _dense_models[key] = workspace.dense_model(dense.weights)
    return _dense_models[key]


def _report_epoch(row: Mapping[str, Any]) -> None:
    tune.report({key: value for key, value in row.items() if isinstance(value, (int, float)) and value is not None})


def _send(writer: Any, outcome: TrialOutcome, key: str) -> None:
    record = {name: getattr(outcome, name) for name in ("row", "layers", "history", "latency")}
    plan = weights = None
    if outcome.model is not None and outcome.plan is not None and ray.get(writer.wants_model.remote(outcome.row)):
        weights = safetensors_bytes(outcome.model)
        plan = outcome.plan.with_weights(weights).to_json()
    ray.get(writer.write.remote(record, key, plan, weights))


def _record_crashes(trials: Sequence[Trial], grid: tune.ResultGrid, writer: Any) -> None:
    """Give a record to each trial whose process died before it could send one."""
    crashed = {
        Trial.model_validate(result.config["trial"]).trial_id: result.error
        for result in (grid[index] for index in range(len(grid)))
        if result.error is not None and result.config
    }
    for trial in trials:
        if trial.trial_id in crashed:
            told = str(crashed[trial.trial_id]).strip().splitlines()[-1]
            reason = told.partition(" Some common causes")[0].removeprefix("The actor is dead because ")
            outcome = failed_outcome(
                trial,
                "the trial's process ended before it was done, most often for want of memory or by a crash in a "
                f"library; Ray says: {reason}",
            )
            record = {"row": outcome.row, "layers": (), "history": (), "latency": ()}
            ray.get(writer.write.remote(record, "", None, None))


class _ProgressCallback(tune.Callback):
    """Keeps the state of the sweep up to date."""

    def __init__(self, state: SweepState, refresh: Any) -> None:
        self._state = state
        self._refresh = refresh

    def __getstate__(self) -> dict[str, Any]:
        """Leave the screen behind: Tune pickles its callbacks with the experiment."""
        return {"_state": None, "_refresh": None}

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        """Count the trials that run."""
        self._state.running = sum(trial.status == "RUNNING" for trial in trials)
        self._refresh()

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Count a trial that ended by itself."""
        result = trial.last_result or {}
        status = result.get("status", results.FAILED)
        self._state.finish({"status": status, "accuracy": result.get("accuracy"), "trial_id": str(trial)})
        self._refresh()

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Count a trial whose process died."""
        self._state.finish({"status": results.FAILED})
        self._refresh()
