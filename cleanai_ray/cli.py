"""The command line, `cleanai`. Exit codes: 0 success, 1 trials or the report failed, 2 wrong study or command."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cleanai_ray.config.shipped import QUICKSTART
from cleanai_ray.errors import CleanAIError, ReportError, StudyError
from cleanai_ray.executors.reserved_options import reserving

if TYPE_CHECKING:
    from cleanai_ray.config.study import Study

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

StudyArgument = Annotated[str, typer.Argument(help="Study file (YAML).")]
OverrideOption = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a key.")]
ExecutorOption = Annotated[str, typer.Option(help="`ray`, or `local`: in this process, without Ray.")]
AddressOption = Annotated[str | None, typer.Option(help="Ray cluster: `auto` or `host:port`.")]
OutOption = Annotated[str | None, typer.Option(help="Run directory: a folder or URL; default: output.dir.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Compute all again; earlier results move to history/.")]
_UsageError: Any = typer.BadParameter.__bases__[0]
_OF_TRIALS = ("methods", "metrics", "models", "datasets", "tasks", "stages", "executors", "formats", "targets")
_OF_REPORTS = ("charts", "questions", "risks", "chapters")
KINDS = (*_OF_TRIALS, *_OF_REPORTS)


@app.command()
def run(
    study: StudyArgument,
    out: OutOption = None,
    address: AddressOption = None,
    set_: OverrideOption = None,
    fresh: FreshOption = False,
    executor: ExecutorOption = "ray",
) -> int:
    """Run a whole study; resumes if the run directory already holds part of it."""
    from cleanai_ray.executors.progress import ProgressReporter
    from cleanai_ray.executors.run_study import RunOptions, run_study
    from cleanai_ray.stages.planning import check_study
    from cleanai_ray.storage.run_directory import RunDirectory

    loaded = _load(study, set_ or [], out)
    workspace = check_study(loaded)
    directory = RunDirectory(loaded.output.dir)
    command = shlex.join(["cleanai", *sys.argv[1:]])
    options = RunOptions(executor=_known_executor(executor), address=address, command=command, fresh=fresh)
    with _resumable():
        failed = run_study(loaded, workspace, directory, options, ProgressReporter())
    return 1 if failed else 0


@app.command()
def quickstart(
    out: OutOption = None, set_: OverrideOption = None, fresh: FreshOption = False, executor: ExecutorOption = "ray"
) -> int:
    """Run the study that ships with the package: a small network on 8 x 8 digits, pruned in 52 ways."""
    return run(str(QUICKSTART), out, None, set_, fresh, executor)


@app.command()
def plan(study: StudyArgument, out: OutOption = None, set_: OverrideOption = None) -> int:
    """Show every trial of a study, its resources and what is cached; computes nothing and does not start Ray."""
    from cleanai_ray.stages.planning import check_study, describe_plan, missing_inputs
    from cleanai_ray.storage.run_directory import RunDirectory

    loaded = _load(study, set_ or [], out)
    workspace = None if missing_inputs(loaded) else check_study(loaded)
    described = describe_plan(loaded, workspace, RunDirectory(loaded.output.dir))
    _print_table(described.columns, described.rows, described.summary)
    return 0


def _add_analysis(command: str, name: str, text: str) -> None:
    """Add the command of an analysis of the dense model: a module of `executors` with `analyse` and `describe`."""

    def analyse(
        study: StudyArgument,
        out: OutOption = None,
        address: AddressOption = None,
        set_: OverrideOption = None,
        executor: ExecutorOption = "ray",
    ) -> int:
        from cleanai_ray.executors.progress import ProgressReporter
        from cleanai_ray.executors.run_study import RunOptions
        from cleanai_ray.stages.planning import check_study
        from cleanai_ray.storage.run_directory import RunDirectory

        loaded = _load(study, set_ or [], out)
        module, directory = import_module(f"cleanai_ray.executors.{name}"), RunDirectory(loaded.output.dir)
        options = RunOptions(executor=_known_executor(executor), address=address)
        with _resumable():
            found = module.analyse(loaded, check_study(loaded), directory, options, ProgressReporter())
        _print_table(*module.describe(found, directory))
        return 0

    app.command(command, help=text)(analyse)


_add_analysis(
    "sensitivity",
    "sensitivity",
    "Measure what narrowing each group of layers costs, and share the ratios and budgets out over the layers.",
)
_add_analysis(
    "profile",
    "latency_profile",
    "Time the groups of layers at several widths in evaluation.target, and judge what that predicts of whole models.",
)


@app.command()
def status(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Run directory: a folder or URL.")],
    follow: Annotated[bool, typer.Option("--follow", help="Refresh until the study has ended.")] = False,
) -> int:
    """Show the progress of a study, from its run directory alone; exit code 1 if it failed or stopped."""
    from cleanai_ray.storage.run_directory import RunDirectory
    from cleanai_ray.storage.status import show_status

    return show_status(RunDirectory(directory), _console(), follow=follow)


@app.command()
def report(directory: Annotated[str, typer.Argument(metavar="DIR", help="Run directory.")]) -> int:
    """Make the charts, PDF and HTML again, from the Parquet files alone."""
    from cleanai_ray.report import make_report
    from cleanai_ray.storage.run_directory import RunDirectory

    for name in make_report(RunDirectory(directory)):
        print(f"{directory.rstrip('/')}/{name}")
    return 0


@app.command()
def compare(
    directories: Annotated[list[str], typer.Argument(metavar="DIR DIR...", help="Run directories.")],
    out: Annotated[str | None, typer.Option(help="Folder or URL for the findings as Parquet, PDF and HTML.")] = None,
) -> int:
    """Compare studies: their differences, and what they show together. Writes files only with --out."""
    from cleanai_ray.report.sections import side_by_side
    from cleanai_ray.storage.run_directory import RunDirectory

    found = side_by_side.compare_studies([RunDirectory(directory) for directory in directories])
    _print_table(("", *found.studies), found.facts, [""])
    _print_table(("what differs", *found.studies), found.differences, [""])
    lines = [f"{answer.question} {answer.verdict.capitalize()}. {answer.sentence}" for answer in found.answers]
    _print_table(side_by_side.FINDING_COLUMNS, side_by_side.finding_rows(found), ["", *lines])
    for name in side_by_side.write_comparison(found, RunDirectory(out)) if out else ():
        print(f"{str(out).rstrip('/')}/{name}")
    return 0


@app.command()
def export(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Run directory.")],
    trial: Annotated[str, typer.Option(help="Trial id, or `best`.")] = "best",
    format_: Annotated[str, typer.Option("--format", help="One of `cleanai list formats`.")] = "state_dict",
    out: Annotated[str | None, typer.Option(help="File to write; default: DIR/exports/TRIAL.SUFFIX.")] = None,
    license_: Annotated[str, typer.Option("--license", help="What a model card states.")] = "unknown",
) -> int:
    """Write a pruned model for deployment."""
    from cleanai_ray.stages.export_run import export_trial
    from cleanai_ray.storage.run_directory import RunDirectory

    print(export_trial(RunDirectory(directory), trial, format_, Path(out) if out else None, license_))
    return 0


@app.command()
def explain(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="Run directory.")],
    trial: Annotated[str, typer.Option(help="Trial id, or `best`.")] = "best",
) -> int:
    """Show which channels a trial removed from each layer, and why."""
    from cleanai_ray.stages.export_run import explain_trial
    from cleanai_ray.storage.run_directory import RunDirectory

    print(explain_trial(RunDirectory(directory), trial))
    return 0


@app.command()
@reserving
def submit(
    study: StudyArgument,
    address: Annotated[str, typer.Option(help="Address of the cluster's dashboard, http://HEAD:8265.")],
    out: OutOption = None,
    set_: OverrideOption = None,
    fresh: FreshOption = False,
    reserved: Mapping[str, float] = MappingProxyType({}),
) -> int:
    """Run a study as a job on a cluster (as `ray job submit` does), stream its log and return its exit code."""
    loaded = _load(study, set_ or [], out)  # before Ray, which takes seconds to load
    from cleanai_ray.executors.ray.entry_point import EntryPoint
    from cleanai_ray.executors.ray.jobs import submit_study

    entry_point = EntryPoint(**reserved)
    return submit_study(
        study, loaded, address=address, out=out, overrides=set_ or [], fresh=fresh, entry_point=entry_point
    )


@app.command(name="list")
def list_(kind: Annotated[str, typer.Argument(help=f"One of: {', '.join(KINDS)}.")]) -> int:
    """List the entries of a registry, with one line each."""
    from cleanai_ray import registry

    if kind not in KINDS:
        raise StudyError(f"list: '{kind}' is unknown; allowed: {', '.join(KINDS)}")
    chosen: Any = getattr(registry, kind.upper())
    table = Table("name", kind.removesuffix("s"), box=None, show_header=False, pad_edge=False)
    for name, summary in chosen.summaries().items():
        table.add_row(name, escape(summary))
    _console().print(table)
    if kind == "models":
        print("Every other torchvision classification model works by its name, too.")
    return 0


@contextmanager
def _resumable() -> Iterator[None]:
    """Raise Abort on an interruption, since typer would return its own exit code."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Abort from None


def _known_executor(name: str) -> str:
    from cleanai_ray.registry import EXECUTORS

    if name not in EXECUTORS.names():
        raise StudyError(f"--executor is '{name}'; allowed: {', '.join(EXECUTORS.names())}")
    return name


def _load(path: str, overrides: list[str], out: str | None) -> Study:
    from cleanai_ray.config.study import load_study

    return load_study(path, [*overrides, f"output.dir={out}"] if out else overrides)


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], lines: Sequence[str]) -> None:
    console = _console()
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for line in lines:
        console.print(line, markup=False)


def _console() -> Console:
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 200)


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code.

    Args:
        argv: The arguments, without the program's name; by default, those of the process.
    """
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    warnings.filterwarnings("ignore", category=FutureWarning)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        code = app(args=argv, prog_name="cleanai", standalone_mode=False)
        return int(code or 0)
    except _UsageError as error:
        return _refuse(error.format_message())
    except ReportError as error:
        _refuse(str(error))
        return 1
    except CleanAIError as error:
        return _refuse(str(error))
    except (typer.Abort, KeyboardInterrupt):
        print("cleanai: interrupted; run the same command again to resume", file=sys.stderr)
        return 130


def _refuse(message: str) -> int:
    print(f"cleanai: {' '.join(message.split())}", file=sys.stderr)
    return 2
