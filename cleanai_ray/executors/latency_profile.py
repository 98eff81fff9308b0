"""The latency profile of a study's dense model, in the study's target."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from cleanai_ray.config.study import Study
from cleanai_ray.executors.base import Executor
from cleanai_ray.executors.chart_file import write_chart
from cleanai_ray.executors.multiple import obtain_multiple
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.profile.shrinkage import noise_of
from cleanai_ray.registry import EXECUTORS
from cleanai_ray.stages.fingerprints import profile_key
from cleanai_ray.stages.latency_profile import profile_study, require_target
from cleanai_ray.stages.multiple import is_measured, known_multiple
from cleanai_ray.stages.workspace import Workspace
from cleanai_ray.storage import schemas
from cleanai_ray.storage.locking import locked
from cleanai_ray.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    from altair.typing import ChartType

    from cleanai_ray.executors.run_study import RunOptions  # which imports this module's users

CHART_FILE = "charts/latency_profile.svg"
TOLERANCE = 0.05
"""Share of the measured time within which a prediction counts as right."""

_SHARES = (0.75, 0.5, 0.25)


def analyse(
    study: Study, workspace: Workspace, run: RunDirectory, options: RunOptions, progress: ProgressReporter
) -> pl.DataFrame:
    """Measure the latency profile, or read it from the run directory; write its table and its chart.

    Args:
        study: The study; its dense model needs no weights.
        workspace: The study, opened in this process.
        run: The run directory.
        options: The options of the run.
        progress: Notified of the progress.

    Returns:
        The rows of profile.parquet.

    Raises:
        StudyError: When the study names no target.
        EvaluationError: When the target cannot run where the study runs.
    """
    require_target(study)
    open_executor = EXECUTORS.get(options.executor)
    with locked(run):
        study = known_multiple(study, run)
        if is_measured(study) or not _is_measured(study, run):
            with open_executor(study, run, options.address) as executor:
                study = obtain_multiple(study, run, executor, progress)
                obtain_profile(study, run, executor, progress)
        table = _read(run)
        write_chart(run, CHART_FILE, lambda: _draw(table), progress)
    return table


def obtain_profile(study: Study, run: RunDirectory, executor: Executor, progress: ProgressReporter) -> pl.DataFrame:
    """Return profile.parquet of a study with a target, measured first if the run directory lacks it.

    One process measures it, with a whole GPU or all cores of a machine to itself.
    """
    if not _is_measured(study, run):
        with progress.stage("latency profile"):
            rows = executor.call("latency profile", profile_study, study.model_dump_json())
        run.write_table(schemas.PROFILE_FILE, schemas.to_table(rows, schemas.PROFILE))
        run.mark(schemas.PROFILE_FILE, profile_key(study))
    return _read(run)


def measured_profile(study: Study, run: RunDirectory) -> pl.DataFrame | None:
    """Return profile.parquet of a study from the run directory; None if it is not there, or of another target."""
    return _read(run) if _is_measured(study, run) else None


def _is_measured(study: Study, run: RunDirectory) -> bool:
    return run.is_complete(schemas.PROFILE_FILE, profile_key(study)) and run.exists(schemas.PROFILE_FILE)


def _read(run: RunDirectory) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(run.read_table(schemas.PROFILE_FILE)))


def _draw(table: pl.DataFrame) -> ChartType | None:
    from cleanai_ray.charts import latency_profile

    return latency_profile.draw(table)


def describe(table: pl.DataFrame, run: RunDirectory) -> tuple[list[str], list[list[str]], list[str]]:
    """Return the profile as headings, a row per group, and lines of text."""
    headings = ["group", "channels", "multiple", *(f"saved at {share:.0%}" for share in _SHARES)]
    rows = []
    alone = table.filter(pl.col("kind") == "group").sort("group_index", "width")
    for _, group in alone.group_by("group_index", maintain_order=True):
        cells = [group["group"][0], str(group["num_channels"][0]), str(group["multiple"][0])]
        dense = float(group["milliseconds_dense"][0])
        for share in _SHARES:
            wider = group.filter(pl.col("width") >= share * group["num_channels"][0])
            fitted = dense if wider.is_empty() else float(wider["fitted_milliseconds"][0])
            cells.append(f"{dense - fitted:.3f} ms")
        rows.append(cells)
    first = table.row(0, named=True) if table.height else {}
    lines = [
        "",
        f"target: {first.get('target')}, on {first.get('device_name')}; dense {first.get('milliseconds_dense', 0):.3f} "
        f"ms; medians of {first.get('num_runs')} rounds in turns",
        "saved at 50%: what the whole model gains when the group alone keeps half of its channels, or the next more "
        "that were timed.",
        *_noise(table),
        *_verdicts(table),
    ]
    files = [name for name in (schemas.PROFILE_FILE, CHART_FILE) if run.exists(name)]
    return headings, rows, [*lines, "", f"written to {run.location}: {', '.join(files)}"]


def _noise(table: pl.DataFrame) -> list[str]:
    """Return how far one timing is off, if the table tells: it is taken out of what groups save."""
    repeats = table.filter(pl.col("kind") == "repeat")["ratio"].to_list()
    return [f"noise of one timing: {noise_of(repeats):.1%}, taken out of what groups save."] if repeats else []


def _verdicts(table: pl.DataFrame) -> list[str]:
    """Return a sentence per model that the prediction was checked with."""
    lines = []
    checks = table.filter(pl.col("kind") == "check").unique("model", keep="first", maintain_order=True)
    for row in checks.iter_rows(named=True):
        measured, predicted = row["milliseconds"], row["predicted_milliseconds"]
        error = predicted / measured - 1.0
        verdict = "within" if abs(error) <= TOLERANCE else "outside"
        lines.append(
            f"check: widths drawn at random: predicted {predicted:.3f} ms, measured {measured:.3f} ms: {error:+.1%}, "
            f"{verdict} {TOLERANCE:.0%}"
        )
    return lines
