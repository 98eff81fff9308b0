"""The commands that take a study: `run`, `plan`, `submit`, `sensitivity` and `profile`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Annotated

import typer

from cleanai_ray.commands.common import (
    AddressOption,
    ExecutorOption,
    FreshOption,
    NoReportOption,
    OutOption,
    OverrideOption,
    StudyArgument,
    known_executor,
    load,
    print_table,
    resumable,
)
from cleanai_ray.executors.reserved_options import reserving


def run(
    study: StudyArgument,
    out: OutOption = None,
    address: AddressOption = None,
    set_: OverrideOption = None,
    fresh: FreshOption = False,
    no_report: NoReportOption = False,
    executor: ExecutorOption = "ray",
) -> int:
    """Run a whole study; resumes if the run directory already holds part of it."""
    from cleanai_ray.executors.progress import ProgressReporter
    from cleanai_ray.executors.run_study import RunOptions, run_study
    from cleanai_ray.stages.planning import check_study
    from cleanai_ray.storage.run_directory import RunDirectory

    loaded = load(study, set_ or [], out)
    workspace = check_study(loaded)
    directory = RunDirectory(loaded.output.dir)
    command = shlex.join(["cleanai", *sys.argv[1:]])
    options = RunOptions(
        executor=known_executor(executor), address=address, command=command, fresh=fresh, report=not no_report
    )
    with resumable():
        failed = run_study(loaded, workspace, directory, options, ProgressReporter())
    return 1 if failed else 0


def quickstart(
    out: OutOption = None, set_: OverrideOption = None, fresh: FreshOption = False, executor: ExecutorOption = "ray"
) -> int:
    """Run the study that ships with the package: a small network on 8 x 8 digits, pruned in 52 ways."""
    from cleanai_ray.config.shipped import QUICKSTART

    return run(str(QUICKSTART), out, None, set_, fresh, executor=executor)


def plan(study: StudyArgument, out: OutOption = None, set_: OverrideOption = None) -> int:
    """Show every trial of a study, its resources and what is cached; computes nothing and does not start Ray.

    The exit code is 2 where the weights file or the data folder is missing, as it would be of `cleanai run`.
    """
    from cleanai_ray.stages.planning import check_study, describe_plan, missing_inputs
    from cleanai_ray.storage.run_directory import RunDirectory

    loaded = load(study, set_ or [], out)
    missing = missing_inputs(loaded)
    described = describe_plan(loaded, None if missing else check_study(loaded), RunDirectory(loaded.output.dir))
    print_table(described.columns, described.rows, described.summary)
    return 2 if missing else 0


@reserving
def submit(
    study: StudyArgument,
    address: Annotated[str, typer.Option(help="Address of the cluster's dashboard, http://HEAD:8265.")],
    out: OutOption = None,
    set_: OverrideOption = None,
    fresh: FreshOption = False,
    no_report: NoReportOption = False,
    reserved: Mapping[str, float] = MappingProxyType({}),
) -> int:
    """Run a study as a job on a cluster (as `ray job submit` does), stream its log and return its exit code."""
    loaded = load(study, set_ or [], out)  # before Ray, which takes seconds to load
    from cleanai_ray.executors.ray.entry_point import EntryPoint
    from cleanai_ray.executors.ray.jobs import submit_study

    words = [*(["--out", out] if out else []), *(word for override in set_ or [] for word in ("--set", override))]
    words += [*(["--fresh"] if fresh else []), *(["--no-report"] if no_report else [])]
    return submit_study(study, loaded, address=address, options=words, entry_point=EntryPoint(**reserved))


def _analysis(name: str, text: str) -> Callable[..., int]:
    """Return the command of an analysis of the dense model: a module of `executors` with `analyse` and `describe`."""

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

        loaded = load(study, set_ or [], out)
        module, directory = import_module(f"cleanai_ray.executors.{name}"), RunDirectory(loaded.output.dir)
        options = RunOptions(executor=known_executor(executor), address=address)
        with resumable():
            found = module.analyse(loaded, check_study(loaded), directory, options, ProgressReporter())
        print_table(*module.describe(found, directory))
        return 0

    analyse.__doc__ = text
    return analyse


sensitivity = _analysis(
    "sensitivity",
    "Measure what narrowing each group of layers costs, and share the ratios and budgets out over the layers.",
)
profile = _analysis(
    "latency_profile",
    "Time the groups of layers at several widths in evaluation.target, and judge what that predicts of whole models.",
)
