"""The commands that take a run directory: `status`, `report`, `compare`, `export` and `explain`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cleanai_ray.commands.common import DirectoryArgument, TrialOption, console, print_table
from cleanai_ray.errors import StudyError


def status(
    directory: DirectoryArgument,
    follow: Annotated[bool, typer.Option("--follow", help="Refresh until the study has ended.")] = False,
) -> int:
    """Show the progress of a study, from its run directory alone; exit code 1 if it failed or stopped."""
    from cleanai_ray.storage.run_directory import RunDirectory
    from cleanai_ray.storage.status import show_status

    return show_status(RunDirectory(directory), console(), follow=follow)


def report(
    directories: Annotated[list[str], typer.Argument(metavar="DIR...", help="Run directories: folders or URLs.")],
    out: Annotated[str | None, typer.Option(help="Folder or URL for the joint report of several runs.")] = None,
    planned: Annotated[int | None, typer.Option(help="Runs that a joint report is to have in the end.", min=1)] = None,
) -> int:
    """Make the charts, PDF and HTML again, from the Parquet files alone; of several runs, a joint report."""
    from cleanai_ray.report import make_report
    from cleanai_ray.report.joint import make_joint_report
    from cleanai_ray.storage.run_directory import RunDirectory
    from cleanai_ray.storage.schemas import RESULTS_FILE

    if planned is not None and out is None:
        raise StudyError(f"--planned is {planned}, which is for a joint report; needed with it: --out FOLDER")
    if len(directories) == 1 and out is None:
        (out,) = directories
        names = make_report(RunDirectory(out))
    elif out is None:
        raise StudyError(f"--out is missing; needed for a joint report of {len(directories)} run directories: a folder")
    elif RunDirectory(out).exists(RESULTS_FILE):
        raise StudyError(f"--out is '{out}', which holds the tables of a run; allowed: another folder")
    else:
        names = make_joint_report([RunDirectory(each) for each in directories], RunDirectory(out), planned)
    for name in names:
        print(f"{out.rstrip('/')}/{name}")
    return 0


def compare(
    directories: Annotated[list[str], typer.Argument(metavar="DIR DIR...", help="Run directories.")],
    out: Annotated[str | None, typer.Option(help="Folder or URL for the findings as Parquet, PDF and HTML.")] = None,
) -> int:
    """Compare studies: their differences, and what they show together. Writes files only with --out."""
    from cleanai_ray.report.sections import side_by_side
    from cleanai_ray.storage.run_directory import RunDirectory

    found = side_by_side.compare_studies([RunDirectory(directory) for directory in directories])
    print_table(("", *found.studies), found.facts, [""])
    print_table(("what differs", *found.studies), found.differences, [""])
    lines = [f"{answer.question} {answer.verdict.capitalize()}. {answer.sentence}" for answer in found.answers]
    print_table(side_by_side.FINDING_COLUMNS, side_by_side.finding_rows(found), ["", *lines])
    for name in side_by_side.write_comparison(found, RunDirectory(out)) if out else ():
        print(f"{str(out).rstrip('/')}/{name}")
    return 0


def export(
    directory: DirectoryArgument,
    trial: TrialOption = "best",
    format_: Annotated[str, typer.Option("--format", help="One of `cleanai list formats`.")] = "state_dict",
    out: Annotated[str | None, typer.Option(help="File to write; default: DIR/exports/TRIAL.SUFFIX.")] = None,
    license_: Annotated[str, typer.Option("--license", help="What a model card states.")] = "unknown",
) -> int:
    """Write a pruned model for deployment."""
    from cleanai_ray.stages.export_run import export_trial, missed_limits
    from cleanai_ray.storage.run_directory import RunDirectory

    run = RunDirectory(directory)
    print(export_trial(run, trial, format_, Path(out) if out else None, license_))
    if note := missed_limits(run, trial):
        print(f"note: {note}", file=sys.stderr)
    return 0


def explain(directory: DirectoryArgument, trial: TrialOption = "best") -> int:
    """Show which channels a trial removed from each layer, and why."""
    from cleanai_ray.stages.export_run import explain_trial
    from cleanai_ray.storage.run_directory import RunDirectory

    print(explain_trial(RunDirectory(directory), trial))
    return 0
