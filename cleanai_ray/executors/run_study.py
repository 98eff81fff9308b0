"""A run of a whole study: dense model, calibration, sweep, tables, report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from cleanai_ray.config.study import Study
from cleanai_ray.errors import ReportError
from cleanai_ray.executors.checkpoints import record_name
from cleanai_ray.executors.context import DenseWeights, RunContext
from cleanai_ray.executors.counts import SweepState
from cleanai_ray.executors.dense import needed_memory, obtain_dense
from cleanai_ray.executors.latency_profile import obtain_profile
from cleanai_ray.executors.measures import measure_draws
from cleanai_ray.executors.multiple import obtain_multiple
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.executors.run_record import RunRecord
from cleanai_ray.executors.status_writer import status_written
from cleanai_ray.executors.timed_alone import time_records
from cleanai_ray.executors.trial_work import SweepInputs, groups_to_run
from cleanai_ray.executors.writer import lacks_model
from cleanai_ray.registry import EXECUTORS
from cleanai_ray.stages.fingerprints import trial_key
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
    schemas.PROFILE_FILE,
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
        ReportError: When a part of the report could not be made; the tables and all else are written.
        CleanAIError: When the study cannot run, or another process holds the run directory. Everything computed up to
            then is kept.
    """
    open_executor = EXECUTORS.get(options.executor)
    with locked(run):
        if options.fresh:
            clear(run)
        clock, record = time.monotonic(), RunRecord(run, command=options.command, executor=options.executor)
        if warning := warn_of_another_study(study, run):
            progress.say(warning)
        run.write_text("study.yaml", study.to_yaml())
        rows: list[dict[str, Any]] = []
        try:
            with open_executor(study, run, options.address) as executor:
                context = RunContext(study=study, workspace=workspace, run=run, executor=executor, progress=progress)
                with status_written(study, run, progress, executor.watch):
                    rows += _run_stages(context, record)
                    with progress.stage("report"):
                        _make_report(run)
        finally:
            if rows:
                _say_outcome(rows, run, time.monotonic() - clock, progress)
    return sum(row["status"] != schemas.OK for row in rows)


def _make_report(run: RunDirectory) -> None:
    """Make the report; whatever goes wrong with it is a ReportError."""
    try:
        from cleanai_ray.report import make_report  # here, so that a study runs without what only reports need

        make_report(run)
    except ReportError:
        raise
    except Exception as error:
        raise ReportError(
            f"the report could not be made ({type(error).__name__}: {' '.join(str(error).split())}); the tables are in "
            f"{run.location}, and `cleanai report {run.location}` makes the report again"
        ) from error


def _run_stages(context: RunContext, record: RunRecord) -> list[dict[str, Any]]:
    """Run every stage of a study, write its tables, and return the rows of its trials."""
    run, executor, progress = context.run, context.executor, context.progress
    executor.check(context.study)
    context = context.of_study(obtain_multiple(context.study, run, executor, progress))
    study = context.study
    record.begin(context)
    progress.say(executor.resources.description)
    for notice in executor.notices(study):
        progress.say(notice)
    with progress.stage("dense model"):
        dense = obtain_dense(context)
    progress.dense(dense.accuracy)
    record.note_weights(context.workspace.study, dense.digest)
    weights = DenseWeights(content=executor.share(dense.weights), digest=dense.digest)
    measures = measure_draws(context, weights)
    meets_time = any(budget.resource == "latency" for budget in study.sweep.budgets)
    inputs = SweepInputs(
        study=study,
        dense_digest=dense.digest,
        dense=executor.share(dense),
        measures=measures,
        store=executor.store,
        profile=obtain_profile(study, run, executor, progress) if meets_time else None,
    )
    records, num_complete = run_sweep(context, inputs, weights, record)
    time_records(context, records, dense.digest)
    record.end(study, num_complete)
    write_tables(run, list(records.values()), dense.history, measures[study.draws()[0]].get())
    return [found["row"] for found in records.values()]


def run_sweep(
    context: RunContext, inputs: SweepInputs, weights: DenseWeights, record: RunRecord
) -> tuple[Records, int]:
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
        num_groups = sum(bool(group.trials) for group in groups)
        allotment = context.executor.allot(study, num_groups, lambda: needed_memory(context, weights))
        record.note_resources(allotment)
        for sentence in allotment.sentences():
            context.progress.say(sentence)
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
    files = [name for name in ("report.pdf", "report.html", schemas.RESULTS_FILE) if run.exists(name)]
    progress.say(f"results: {run.location} ({', '.join(files)})")
