"""The progress of a study, from `status.json` in its run directory. Reading it needs no Ray and no cluster."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cleanai_ray.errors import ArtifactError
from cleanai_ray.storage.durations import format_seconds
from cleanai_ray.storage.run_directory import RunDirectory

STATUS_FILE = "status.json"
HEARTBEAT = 5.0
SILENCE = 60.0
_REFRESH, _PLAIN_INTERVAL = 1.0, 10.0
_BAR_WIDTH = 40


class StudyStatus(BaseModel):
    """The progress of a study, as its driver writes it from time to time and at the end.

    Attributes:
        study: Name of the study.
        state: `running`, `finished`, or `failed` (the study itself; trials may fail in a finished one).
        error: Why it failed, in a sentence; "" otherwise.
        stage: The stage that is running, or ran last.
        shards_done: Shards that the stage has finished; None if it has no shards.
        shards_total: Shards of the stage; None if it has no shards.
        epochs_done: Epochs of the dense model's training that have ended; None if it is not trained in this stage.
        epochs_total: Epochs of that training; None likewise.
        samples_per_second: Pace of the stage in samples; None if it is unknown.
        trials_total: Trials of the study.
        trials_done: Trials that succeeded, those of earlier runs included.
        trials_running: Trials that are running.
        trials_failed: Trials that failed.
        metric: Name of the task's score; "" before the dense model is scored, or where an older version wrote this.
        best: Identifier of the best trial so far; "" before the first has ended.
        best_accuracy: Its accuracy; of other tasks, what trials are compared by.
        best_score: Its score in its own units; None for classification.
        best_samples: Samples that these are on, which decided nothing, once the study has chosen its trial; None while
            they are on all evaluation samples.
        accuracy_dense: The same as best_accuracy of the dense model, on the same samples; None before it is scored.
        score_dense: The same as best_score of the dense model.
        seconds_left: Estimated seconds until the stage ends; None if it is unknown.
        started: When the run began, with the time zone.
        updated: When this was written, with the time zone.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    study: str
    state: Literal["running", "finished", "failed"]
    error: str = ""
    stage: str = ""
    shards_done: int | None = None
    shards_total: int | None = None
    epochs_done: int | None = None
    epochs_total: int | None = None
    samples_per_second: float | None = None
    trials_total: int
    trials_done: int = 0
    trials_running: int = 0
    trials_failed: int = 0
    metric: str = ""
    best: str = ""
    best_accuracy: float | None = None
    best_score: float | None = None
    best_samples: int | None = None
    accuracy_dense: float | None = None
    score_dense: float | None = None
    seconds_left: float | None = None
    started: AwareDatetime
    updated: AwareDatetime

    def silent_for(self, now: datetime.datetime) -> float:
        """Return the seconds since the last update; 0 if the writer's clock is ahead of this one."""
        return max(0.0, (now - self.updated).total_seconds())

    def is_alive(self, now: datetime.datetime) -> bool:
        """Return whether the study is running: its state says so, and the last update is recent."""
        return self.state == "running" and self.silent_for(now) <= SILENCE


def format_pace(samples_per_second: float) -> str:
    """Return a pace as `1,234 samples/s` or `0.3 samples/s`."""
    return f"{samples_per_second:,.{0 if samples_per_second >= 10 else 1}f} samples/s"


def format_score(metric: str | None, score: float | None, accuracy: float | None) -> str:
    """Return a score as `93.06%`, or with its name where it is not accuracy: `perplexity 7.312`.

    Args:
        metric: Name of the score; None or "" is accuracy.
        score: The score in its own units; not read for accuracy.
        accuracy: The accuracy, in [0, 1]; read for accuracy alone.
    """
    if metric in (None, "", "accuracy"):
        return "-" if accuracy is None else f"{accuracy:.2%}"
    return f"{metric} not finite" if score is None else f"{metric} {score:.4g}"


def interrupted(*, fresh: bool) -> str:
    """Say that a command was interrupted, and how it goes on.

    Args:
        fresh: True where it had `--fresh`, which computes everything again.
    """
    return f"interrupted; run the same command again{', without --fresh,' if fresh else ''} to resume"


def utc_now() -> datetime.datetime:
    """Return the present time in UTC, with its time zone."""
    return datetime.datetime.now(datetime.timezone.utc)


def read_status(run: RunDirectory) -> StudyStatus:
    """Read the progress of the study in a run directory.

    Raises:
        ArtifactError: When the directory does not exist, cannot be read, or was not written by `cleanai run`.
    """
    try:
        return StudyStatus.model_validate(run.read_json(STATUS_FILE))
    except ArtifactError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        raise ArtifactError(
            f"'{run.location}' holds no study that was started: it has no {STATUS_FILE}, which `cleanai run` writes "
            "as soon as it is connected to Ray"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or STATUS_FILE
        raise ArtifactError(
            f"{STATUS_FILE} in '{run.location}' was not written by `cleanai run`: {where}: {first['msg']}"
        ) from error


def describe(status: StudyStatus, now: datetime.datetime) -> dict[str, str]:
    """Return a status as headings and values; what is unknown is left out."""
    lines = {"study": status.study, "state": _describe_state(status, now), "stage": status.stage or "-"}
    if status.shards_done is not None:
        pace = "" if status.samples_per_second is None else f", {format_pace(status.samples_per_second)}"
        lines["shards"] = f"{status.shards_done} of {status.shards_total} done{pace}"
    if status.epochs_done is not None:
        lines["epochs"] = f"{status.epochs_done} of {status.epochs_total} done"
    lines["trials"] = (
        f"{status.trials_done} done, {status.trials_running} running, {status.trials_failed} failed, "
        f"of {status.trials_total}"
    )
    if status.best and status.best_accuracy is not None:
        best = format_score(status.metric, status.best_score, status.best_accuracy)
        lines["best so far" if status.state == "running" else "best"] = f"{best} ({status.best})"
    if status.accuracy_dense is not None:
        lines["dense"] = format_score(status.metric, status.score_dense, status.accuracy_dense)
    if status.best_samples is not None:
        lines["scored on"] = f"{status.best_samples:,} samples that decided nothing"
    elif "dense" in lines:
        lines["scored on"] = "all evaluation samples"
    if status.is_alive(now):
        known = status.seconds_left is not None
        lines["time left"] = f"{format_seconds(status.seconds_left or 0)} in this stage" if known else "not known yet"
    updated = status.updated.astimezone()
    lines["updated"] = f"{updated:%Y-%m-%d %H:%M:%S %Z}, {format_seconds(status.silent_for(now))} ago"
    return lines


def _describe_state(status: StudyStatus, now: datetime.datetime) -> str:
    lasted = format_seconds((status.updated - status.started).total_seconds())
    if status.state == "failed":
        return f"failed after {lasted}: {status.error}"
    if status.state == "finished":
        return f"finished after {lasted}"
    if not status.is_alive(now):
        return f"stopped: no update for {format_seconds(status.silent_for(now))}; the same command resumes it"
    return f"running for {lasted}"


def render(status: StudyStatus, now: datetime.datetime) -> RenderableType:
    """Return a status as a terminal shows it: headings, values, and bars for shards and trials."""
    colours = {"running": "cyan", "finished": "green", "failed": "red", "stopped": "red"}
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for heading, value in describe(status, now).items():
        style = colours.get(value.split()[0].rstrip(":"), "") if heading == "state" else ""
        shown: RenderableType = Text(value, style=style)
        if heading == "shards":
            shown = _with_bar(shown, status.shards_done or 0, status.shards_total or 0)
        elif heading == "epochs":
            shown = _with_bar(shown, status.epochs_done or 0, status.epochs_total or 0)
        elif heading == "trials":
            shown = _with_bar(shown, status.trials_done + status.trials_failed, status.trials_total)
        table.add_row(heading, shown)
    return table


def _with_bar(shown: RenderableType, done: int, total: int) -> RenderableType:
    bar = ProgressBar(
        total=max(total, 1), completed=done, width=_BAR_WIDTH, complete_style="cyan", finished_style="green"
    )
    return Group(shown, bar)


def show_status(run: RunDirectory, console: Console, *, follow: bool) -> int:
    """Print the progress of a study, once or until it ends, and return 0, or 1 if it failed or stopped.

    Args:
        run: The run directory.
        console: Where to print. A terminal shows one picture that is kept up to date; anything else gets lines.
        follow: Keep printing until the study has ended.

    Raises:
        ArtifactError: As `read_status` does.
    """
    status = read_status(run)
    if follow and status.is_alive(utc_now()):
        status = _follow_live(run, console) if console.is_terminal else _follow_plainly(run, console)
    elif console.is_terminal:
        console.print(render(status, utc_now()))
    else:
        _print_lines(status, console)
    return 0 if status.state == "finished" or status.is_alive(utc_now()) else 1


def _follow_live(run: RunDirectory, console: Console) -> StudyStatus:
    with Live(console=console, auto_refresh=False) as live:

        def draw(status: StudyStatus) -> None:
            live.update(render(status, utc_now()), refresh=True)

        return _follow(run, draw)


def _follow_plainly(run: RunDirectory, console: Console) -> StudyStatus:
    printed, last = "", -_PLAIN_INTERVAL

    def tell(status: StudyStatus) -> None:
        nonlocal printed, last
        lines = describe(status, utc_now())
        line = "; ".join(f"{heading} {lines[heading]}" for heading in ("stage", "shards", "trials") if heading in lines)
        if line != printed and time.monotonic() - last >= _PLAIN_INTERVAL:
            printed, last = line, time.monotonic()
            console.print(line, markup=False)

    status = _follow(run, tell)
    _print_lines(status, console)
    return status


def _follow(run: RunDirectory, tell: Callable[[StudyStatus], None]) -> StudyStatus:
    while True:
        status = read_status(run)
        tell(status)
        if not status.is_alive(utc_now()):
            return status
        time.sleep(_REFRESH)


def _print_lines(status: StudyStatus, console: Console) -> None:
    lines = describe(status, utc_now())
    width = max(map(len, lines))
    for heading, value in lines.items():
        console.print(f"{heading:<{width}}  {value}", markup=False)
