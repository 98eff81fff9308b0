"""Studies from Python, without the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from cleanai_ray.config.study import Study, load_study, parse_study
from cleanai_ray.errors import StudyError
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.executors.run_study import RunOptions, run_study
from cleanai_ray.registry import EXECUTORS
from cleanai_ray.stages.planning import check_study
from cleanai_ray.stages.study_run import StudyRun
from cleanai_ray.storage.run_directory import RunDirectory


def run(
    study: Study | Mapping[str, Any] | str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | None = None,
    executor: str = "ray",
    address: str | None = None,
    fresh: bool = False,
    overrides: Sequence[str] = (),
    progress: bool = True,
    report: bool = True,
) -> StudyRun:
    """Run a whole study, as `cleanai run` does; it resumes if the run directory already holds part of it.

    Trials that failed are in `failed` of the result's frames.

    Args:
        study: A study file; or its content, as nested dicts; or a parsed study.
        out: The run directory, a folder or URL; by default the study's `output.dir`.
        executor: `ray`, or `local`: in this process, without Ray.
        address: A Ray cluster: `auto` or `host:port`; by default that of RAY_ADDRESS, else Ray is started here.
        fresh: True to compute everything again; earlier results move to `history/`.
        overrides: Keys to set, as `finetune.epochs=5`.
        progress: False to print nothing.
        report: False to write the tables alone; `cleanai report DIR` makes the report from them.

    Raises:
        StudyError: When the study says something that is not allowed.
        ReportError: When a part of the report could not be made; all else is written, and `load_run` opens it.
        CleanAIError: When the study cannot run. What was computed until then is kept.
    """
    if executor not in EXECUTORS.names():
        raise StudyError(f"executor is '{executor}'; allowed: {', '.join(EXECUTORS.names())}")
    loaded = _parsed(study, overrides)
    if out is not None:
        output = loaded.output.model_copy(update={"dir": os.fspath(out)})
        loaded = loaded.model_copy(update={"output": output})
    workspace, directory = check_study(loaded), RunDirectory(loaded.output.dir)
    options = RunOptions(executor=executor, address=address, command="cleanai_ray.run", fresh=fresh, report=report)
    console = Console(highlight=False, soft_wrap=True, quiet=not progress)
    run_study(loaded, workspace, directory, options, ProgressReporter(console))
    return StudyRun(directory)


def _parsed(study: Study | Mapping[str, Any] | str | os.PathLike[str], overrides: Sequence[str]) -> Study:
    if isinstance(study, Study):
        return parse_study(study.model_dump(mode="json"), overrides) if overrides else study
    if isinstance(study, Mapping):
        return parse_study(dict(study), overrides)
    if isinstance(study, (str, os.PathLike)):
        return load_study(Path(study), overrides)
    raise StudyError(f"study is a {type(study).__name__}; allowed: a path, nested dicts, or a parsed study")
