"""The command `list`: the names that a study file can use."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cleanai_ray.commands.common import console
from cleanai_ray.errors import StudyError

_OF_TRIALS = ("methods", "metrics", "models", "datasets", "tasks", "stages", "executors", "formats", "targets")
_OF_REPORTS = ("charts", "questions", "risks", "chapters")
KINDS = (*_OF_TRIALS, *_OF_REPORTS)
"""The registries that can be listed."""


def _complete_kind(incomplete: str) -> list[str]:
    return [kind for kind in KINDS if kind.startswith(incomplete)]


def list_names(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help=f"One of: {', '.join(KINDS)}.", autocompletion=_complete_kind)
    ],
) -> int:
    """List the entries of a registry, with one line each."""
    from rich.markup import escape
    from rich.table import Table

    from cleanai_ray import registry

    if kind not in KINDS:
        raise StudyError(f"list: '{kind}' is unknown; allowed: {', '.join(KINDS)}")
    chosen: Any = getattr(registry, kind.upper())
    table = Table("name", kind.removesuffix("s"), box=None, show_header=False, pad_edge=False)
    for name, summary in chosen.summaries().items():
        table.add_row(name, escape(summary))
    console().print(table)
    if kind == "models":
        print("Every other torchvision classification model works by its name, too.")
    return 0
