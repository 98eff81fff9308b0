"""A run of a whole study: dense model, calibration, sweep, tables, report."""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass
from typing import Any

from cleanai_ray.config.study import Study, digest
from cleanai_ray.executors.checkpoints import record_name
from cleanai_ray.executors.context import DenseWeights, RunContext
from cleanai_ray.executors.counts import SweepState
from cleanai_ray.executors.dense import obtain_dense
from cleanai_ray.executors.measures import measure_draws
from cleanai_ray.executors.notes import describe_notes
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.executors.status_writer import status_written
from cleanai_ray.executors.trial_work import SweepInputs, groups_to_run
from cleanai_ray.executors.writer import lacks_model, unreadable_samples
from cleanai_ray.registry import EXECUTORS
from cleanai_ray.report import make_report
from cleanai_ray.stages.environment import describe_environment, describe_samples
from cleanai_ray.stages.fingerprints import calibration_key, trial_key
from cleanai_ray.stages.planning import warn_of_another_study
from cleanai_ray.stages.tables import write_tables
from cleanai_ray.stages.workspace import Workspace
from cleanai_ray.storage import schemas
from cleanai_ray.storage.durations import format_seconds
from cleanai_ray.storage.locking import locked
from cleanai_ray.storage.ranking import rank
from cleanai_ray.storage.run_directory import RunDirectory

Records = dict[str, dict[str, Any]]
"""The record of each trial, by trial id: its rows, by table."""

_FILES_OF_A_RUN = (
    "cache",
    "trials",
    "models",
    "charts",
    "exports",
    "tune",
    "train",
    "report.pdf",
    "report.html",
    "environment.json",
    "status.json",
    "study.yaml",
    "layer_ratios.yaml",
)
_TABLES = (
    schemas.RESULTS_FILE,
    schemas.LAYERS_FILE,
    schemas.CLASSES_FILE,
    schemas.COVERAGE_FILE,
    schemas.HISTORY_FILE,
    schemas.LATENCY_FILE,
    schemas.SENSITIVITY_FILE,
)


def clear(run: RunDirectory) -> None:
    """Delete the files that earlier runs wrote into a run directory, and nothing else."""
    for name in (*_FILES_OF_A_RUN, *_TABLES):
        run.delete(name)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of a run that are not part of the study.

    Attributes:
        executor: Name of the executor: `ray`, `local` or another that is registered.
        address: Address of a cluster; if None, the executor starts what it needs on this machine.
        command: The command that was typed, for the record.
        fresh: True to delete the results of earlier runs first.
    """

    executor: str = "ray"
    address: str | None = None
    command: str = ""
    fresh: bool = False


def run_study(
    study: Study, workspace: Workspace, run: RunDirectory, options: RunOptions, progress: ProgressReporter
) -> int:
    """Run a study, resuming from what the run directory already holds, and return the number of failed trials.

    Args:
        study: The study.
        workspace: The study, opened in this process.
        run: The run directory, where all outputs go.
        options: The options of the run.
        progress: Notified of the study's progress.

    Raises:
        CleanAIError: When the study cannot run, or another process holds the run directory. Everything computed up to
            then is kept.
    """
    open_executor = EXECUTORS.get(options.executor)
    with locked(run):
        if options.fresh:
            clear(run)
        started, clock = datetime.datetime.now(datetime.timezone.utc), time.monotonic()
        if warning := warn_of_another_study(study, run):
            progress.say(warning)
        run.write_text("study.yaml", study.to_yaml())
        with open_executor(study, run, options.address) as executor:
            context = RunContext(study=study, workspace=workspace, run=run, executor=executor, progress=progress)
            with status_written(study, run, progress, executor.watch):
                began = {"started": started.isoformat(timespec="seconds"), "command": options.command}
                records = _run_stages(context, {**began, "executor": options.executor}, clock)
        rows = [record["row"] for record in records.values()]
        _say_outcome(rows, run, time.monotonic() - clock, progress)
    return sum(row["status"] != schemas.OK for row in rows)


def _run_stages(context: RunContext, began: dict[str, Any], clock: float) -> Records:
    """Run every stage of a study, write its tables and report, and return the records of its trials."""
    study, run, executor, progress = context.study, context.run, context.executor, context.progress
    executor.check(study)
    progress.say(executor.resources.description)
    with progress.stage("dense model"):
        dense = obtain_dense(context)
    progress.dense(dense.accuracy)
    weights = DenseWeights(content=executor.share(dense.weights), digest=dense.digest)
    measures = measure_draws(context, weights)
    inputs = SweepInputs(
        study=study,
        dense_digest=dense.digest,
        dense=executor.share(dense),
        measures=measures,
        store=executor.store,
    )
    records, num_complete = run_sweep(context, inputs)
    write_tables(run, list(records.values()), dense.history, measures[study.draws()[0]].get())
    run.write_json(
        "environment.json",
        {
            **_record_of_run(context, dense.digest),
            **began,
            "seconds": round(time.monotonic() - clock, 1),
            "trials_complete_before": num_complete,
        },
    )
    with progress.stage("report"):
        make_report(run)
    return records


def run_sweep(context: RunContext, inputs: SweepInputs) -> tuple[Records, int]:
    """Run the trials that are not complete; return the records of all, and the number that was complete before."""
    study, run, store = context.study, context.run, context.executor.store
    done = completed_records(study, run, inputs.dense_digest)
    todo = [trial for trial in study.trials() if trial.trial_id not in done]
    if done:
        context.progress.complete([record["row"] for record in done.values()], len(done) + len(todo))
    groups = groups_to_run(study, todo)
    # A killed driver may have left these behind.
    store.forget_checkpoints([inputs.checkpoint(group.owner) for group in groups if not group.trials])
    if todo:
        store.begin_sweep(list(done))
        state = SweepState(total=len(todo), workers=context.executor.concurrent_trials(study))
        with context.progress.sweep(state) as refresh:
            context.executor.run_trials(inputs, [group for group in groups if group.trials], state, refresh)
            refresh()
    names = [trial.trial_id for trial in study.trials()]
    return {name: done.get(name) or run.read_json(record_name(name)) for name in names}, len(done)


def completed_records(study: Study, run: RunDirectory, dense_digest: str) -> Records:
    """Return the records of the trials that are complete for these inputs and have the models they should have."""
    records = {}
    for trial in study.trials():
        name = record_name(trial.trial_id)
        if run.is_complete(name, trial_key(study, trial, dense_digest)):
            records[trial.trial_id] = run.read_json(name)
    rows = [record["row"] for record in records.values()]
    for trial_id in lacks_model(rows, study.output.save_models, run):
        del records[trial_id]
    return records


def _record_of_run(context: RunContext, dense_digest: str) -> dict[str, Any]:
    """Return the content of environment.json, apart from times and command."""
    study, resources = context.study, context.executor.resources
    return {
        **describe_environment(),
        "cluster": {"nodes": resources.num_nodes, "cpus": resources.cpus, "gpus": resources.gpus},
        "digests": {
            "study": digest(study.model_dump()),
            "weights": dense_digest,
            "calibration": calibration_key(context.workspace.study, dense_digest),
        },
        "samples": describe_samples(context.workspace),
        "unreadable_samples": unreadable_samples(study, context.run),
        **describe_notes(study, context.run),
    }


def _say_outcome(rows: list[dict[str, Any]], run: RunDirectory, seconds: float, progress: ProgressReporter) -> None:
    failed = [row for row in rows if row["status"] != schemas.OK]
    for row in failed:
        progress.say(f"failed: {row['trial_id']}: {row['error']}")
    succeeded = sorted((row for row in rows if row["status"] == schemas.OK), key=rank)
    if succeeded:
        best = succeeded[0]
        progress.say(
            f"best: {best['trial_id']}: accuracy {best['accuracy']:.2%} (dense {best['accuracy_dense']:.2%}) with "
            f"{best['macs'] / best['macs_dense']:.0%} of the MACs and {best['params'] / best['params_dense']:.0%} of "
            "the parameters"
        )
    progress.say(f"{len(succeeded)} of {len(rows)} trials succeeded in {format_seconds(seconds)}")
    progress.say(f"results: {run.location} (report.pdf, report.html, results.parquet)")
