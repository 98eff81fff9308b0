"""A run of a whole study: dense model, calibration, sweep, tables, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cleanai_ray.analysis.limit_verdict import unmet_line
from cleanai_ray.analysis.numbers import plural
from cleanai_ray.config.study import Study, Trial
from cleanai_ray.errors import ReportError
from cleanai_ray.executors.chosen_model import frames_of, keep_chosen_model
from cleanai_ray.executors.context import DenseWeights, RunContext
from cleanai_ray.executors.counts import SweepState
from cleanai_ray.executors.dense import needed_memory, obtain_dense
from cleanai_ray.executors.finished import finished_rows, mark_report
from cleanai_ray.executors.history import History
from cleanai_ray.executors.latency_profile import obtain_profile
from cleanai_ray.executors.measures import measure_draws
from cleanai_ray.executors.multiple import obtain_multiple
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.executors.run_record import RunRecord
from cleanai_ray.executors.status_writer import status_written
from cleanai_ray.executors.timed_alone import time_records
from cleanai_ray.executors.trial_work import SweepInputs, groups_to_run
from cleanai_ray.registry import EXECUTORS
from cleanai_ray.stages.completed import completed_records, model_folder, record_name
from cleanai_ray.stages.dense import DenseModel
from cleanai_ray.stages.dense_check import check_dense
from cleanai_ray.stages.evidence import assign_image_roles, image_rows
from cleanai_ray.stages.planning import cached_dense
from cleanai_ray.stages.tables import write_image_tables, write_tables
from cleanai_ray.stages.workspace import Workspace
from cleanai_ray.storage import schemas
from cleanai_ray.storage.durations import format_seconds
from cleanai_ray.storage.locking import locked
from cleanai_ray.storage.run_directory import PLAN_FILE, RunDirectory
from cleanai_ray.storage.status import format_score, utc_now
from cleanai_ray.tasks.accuracy import Accuracy

Records = dict[str, dict[str, Any]]
"""The record of each trial, by trial id: its rows, by table."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of a run that are not part of the study.

    Attributes:
        executor: Name of the executor: `ray`, `local` or another that is registered.
        address: Address of a cluster; if None, the executor joins what the environment names (Ray's RAY_ADDRESS), or
            starts what it needs on this machine.
        command: The command that was typed, for the record.
        fresh: True to compute everything again; earlier results are moved to `history/`.
        report: False to make no report; `cleanai report` makes it from the tables.
    """

    executor: str = "ray"
    address: str | None = None
    command: str = ""
    fresh: bool = False
    report: bool = True


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
        history = History(run, progress)
        if options.fresh:
            history.clear()
        started, record = utc_now(), RunRecord(run, command=options.command, executor=options.executor)
        history.keep_outcome(study)
        if (finished := finished_rows(study, run, needs_report=options.report)) is not None:
            progress.complete(finished, len(finished))
            progress.say("nothing is left to compute; `cleanai report` makes the report from the tables")
            _say_outcome(study, finished, run, None, progress)
            return 0
        if not options.report:
            history.keep_report()
        run.write_text("study.yaml", study.to_yaml())
        rows: list[dict[str, Any]] = []
        try:
            with open_executor(study, run, options.address) as executor:
                context = RunContext(study=study, workspace=workspace, run=run, executor=executor, progress=progress)
                writing = status_written(study, run, progress, executor.watch, fresh=options.fresh, started=started)
                with writing as status:
                    rows += _run_stages(context, record, history)
                    status.choose(frames_of(study, rows).best)
                    _report(study, run, options, progress)
        finally:
            if rows:
                _say_outcome(study, rows, run, status.seconds, progress)
    return sum(row["status"] != schemas.OK for row in rows)


def _report(study: Study, run: RunDirectory, options: RunOptions, progress: ProgressReporter) -> None:
    if not options.report:
        progress.say(f"no report was asked for; `cleanai report {run.location}` makes it")
        return
    with progress.stage("report"):
        _make_report(run)
    mark_report(study, run, str(cached_dense(study, run)))


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


def _run_stages(context: RunContext, record: RunRecord, history: History) -> list[dict[str, Any]]:
    """Run every stage of a study, write its tables, and return the rows of its trials."""
    run, executor, progress = context.run, context.executor, context.progress
    executor.check(context.study)
    context = context.of_study(obtain_multiple(context.study, run, executor, progress))
    study, dense = context.study, _begin(context, record)
    weights = DenseWeights(content=executor.share(dense.weights), digest=dense.digest)
    history.keep_trials(study, dense.digest)
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
    assign_image_roles(records.values(), dense.logits, study.evaluation.deciding_share)
    time_records(context, records, dense.digest)

    def run_again(trial: Trial) -> dict[str, Any]:
        progress.say(f"the model of the chosen trial, {trial.trial_id}, was not kept; the trial is run again")
        others = [name for name in records if name != trial.trial_id]
        _run_trials(context, inputs, weights, record, ([trial], others))
        found = {**records, trial.trial_id: run.read_json(record_name(trial.trial_id))}
        assign_image_roles([found[trial.trial_id]], dense.logits, study.evaluation.deciding_share)
        time_records(context, found, dense.digest)
        return found[trial.trial_id]

    keep_chosen_model(study, executor.store, records, run_again)
    record.end(study, num_complete)
    roles, share = context.workspace.roles, study.evaluation.deciding_share
    images = image_rows(dense.logits, roles.evaluation_split, share, roles.selection_split)
    write_image_tables(run, list(records.values()), images)
    write_tables(run, list(records.values()), dense.history, measures[study.draws()[0]].get())
    return [found["row"] for found in records.values()]


def _begin(context: RunContext, record: RunRecord) -> DenseModel:
    """Say where the study runs, begin its record, and return its dense model."""
    progress, executor = context.progress, context.executor
    record.begin(context)
    progress.say(executor.resources.description)
    for notice in executor.notices(context.study):
        progress.say(notice)
    with progress.stage("dense model"):
        dense = obtain_dense(context)
    progress.dense(dense.accuracy)
    if isinstance(dense.accuracy, Accuracy):
        for warning in check_dense(context.study, dense.accuracy):
            progress.say(warning)
    record.note_weights(context.workspace.study, dense)
    return dense


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
        _run_trials(context, inputs, weights, record, (todo, list(done)))
    names = [trial.trial_id for trial in study.trials()]
    return {name: done.get(name) or run.read_json(record_name(name)) for name in names}, len(done)


def _run_trials(
    context: RunContext,
    inputs: SweepInputs,
    weights: DenseWeights,
    record: RunRecord,
    trials: tuple[Sequence[Trial], list[str]],
) -> None:
    """Run trials, the first of the two; the second are the ids of those that are complete."""
    (todo, done), study, store = trials, context.study, context.executor.store
    groups = [group for group in groups_to_run(study, todo) if group.trials]
    allotment = context.executor.allot(study, len(groups), lambda: needed_memory(context, weights))
    record.note_resources(allotment)
    for sentence in allotment.sentences():
        context.progress.say(sentence)
    store.begin_sweep(done)
    state = SweepState(total=len(todo), workers=context.executor.concurrent_trials(study))
    with context.progress.sweep(state) as refresh:
        context.executor.run_trials(inputs, groups, state, refresh)
        refresh()


def _score_text(best: dict[str, Any]) -> str:
    if best.get("metric") in (None, "accuracy"):
        images = f" on {plural(best['num_test'], 'image')} that decided nothing," if best.get("num_test") else ""
        return f"accuracy {best['accuracy']:.2%} (dense {best['accuracy_dense']:.2%}){images}"
    text = format_score(best["metric"], best["score"], None)
    return text if best["score_dense"] is None else f"{text} (dense {best['score_dense']:.4g})"


def _say_outcome(
    study: Study, rows: list[dict[str, Any]], run: RunDirectory, seconds: float | None, progress: ProgressReporter
) -> None:
    """Say how a study ended, after so many seconds; None where nothing was left to compute."""
    failed = [row for row in rows if row["status"] != schemas.OK]
    for row in failed:
        progress.say(f"failed: {row['trial_id']}: {row['error']}")
    succeeded = [row for row in rows if row["status"] == schemas.OK]
    frames = frames_of(study, rows)
    best = frames.best
    if best is not None:
        progress.say(
            f"best: {best['trial_id']}: {_score_text(best)} with "
            f"{best['macs'] / best['macs_dense']:.0%} of the MACs and {best['params'] / best['params_dense']:.0%} of "
            "the parameters"
        )
    lasted = ", in an earlier run" if seconds is None else f" in {format_seconds(seconds)}"
    progress.say(f"{len(succeeded)} of {len(rows)} trials succeeded{lasted}")
    files = [name for name in ("report.pdf", "report.html", schemas.RESULTS_FILE) if run.exists(name)]
    progress.say(f"results: {run.location} ({', '.join(files)})")
    folder = "" if best is None else model_folder(best["trial_id"])
    if folder and run.exists(f"{folder}/{PLAN_FILE}"):
        progress.say(f"model: {run.location}/{folder}; elsewhere: cleanai export {run.location} --format standalone")
    if unmet := unmet_line(frames, frames.choice):
        progress.say(f"limit: {unmet}")
