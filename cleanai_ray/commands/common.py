"""What several commands share: options, how a study is loaded, and how a table is printed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cleanai_ray.errors import StudyError

if TYPE_CHECKING:
    from rich.console import Console

    from cleanai_ray.config.study import Study

_TRIAL_NAMES = ("recommended", "best")


def complete_trial(context: typer.Context, incomplete: str) -> list[str]:
    """Return what `--trial` may be completed to: its names, and the trials whose models the run directory holds."""
    # Arguments before an option that still lacks its value are not assigned yet.
    directory = context.params.get("directory") or next(iter(context.args), ".")
    models = Path(directory) / "models"
    saved = sorted(entry.name for entry in models.iterdir()) if models.is_dir() else []
    return [name for name in (*_TRIAL_NAMES, *saved) if name.startswith(incomplete)]


StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="Study file (YAML).")]
DirectoryArgument = Annotated[str, typer.Argument(metavar="DIR", help="Run directory: a folder or URL.")]
OverrideOption = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a key.")]
ExecutorOption = Annotated[str, typer.Option(help="`ray`, or `local`: in this process, without Ray.")]
AddressOption = Annotated[
    str | None, typer.Option(help="Ray cluster: `auto` or `host:port`; default: RAY_ADDRESS, else Ray is started here.")
]
OutOption = Annotated[str | None, typer.Option(help="Run directory: a folder or URL; default: output.dir.")]
FreshOption = Annotated[
    bool, typer.Option("--fresh", help="Compute everything again; earlier results move to history/.")
]
NoReportOption = Annotated[
    bool, typer.Option("--no-report", help="Leave the report out; `cleanai report` makes it from the tables.")
]
TrialOption = Annotated[
    str,
    typer.Option(
        help="Trial id; `recommended`: by the report; `best`: that one or, where none is, the most accurate.",
        autocompletion=complete_trial,
    ),
]


@contextmanager
def resumable() -> Iterator[None]:
    """Raise Abort on an interruption, since typer would return its own exit code."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Abort from None


def known_executor(name: str) -> str:
    """Return the name of an executor.

    Raises:
        StudyError: When there is none of this name.
    """
    from cleanai_ray.registry import EXECUTORS

    if name not in EXECUTORS.names():
        raise StudyError(f"--executor is '{name}'; allowed: {', '.join(EXECUTORS.names())}")
    return name


def load(path: str, overrides: list[str], out: str | None) -> Study:
    """Return a study with its overrides; `out` is its run directory, if it is given.

    Raises:
        StudyError: When the file or an override is wrong.
    """
    from cleanai_ray.config.study import load_study

    return load_study(path, [*overrides, f"output.dir={out}"] if out else overrides)


def console() -> Console:
    """Return a console for standard output: as wide as the terminal, or 200 columns elsewhere."""
    from rich.console import Console

    is_terminal = sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=not is_terminal, width=None if is_terminal else 200)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], lines: Sequence[str]) -> None:
    """Print a table, and lines below it."""
    from rich.table import Table

    shown = console()
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*row)
    shown.print(table)
    for line in lines:
        shown.print(line, markup=False)
