"""The command `schema`: the JSON schema of study files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cleanai_ray.errors import StudyError


def schema(
    out: Annotated[str | None, typer.Option(help="File to write; default: standard output.")] = None,
    names: Annotated[
        bool, typer.Option("--names/--no-names", help="Propose the names of methods, metrics, models and data sets.")
    ] = True,
) -> int:
    """Write the JSON schema of study files, by which editors complete and check them.

    An editor with YAML's language server reads it where the first line of a study file is
    `# yaml-language-server: $schema=FILE`, with the path of the schema from the study file.
    """
    text = schema_of_this_installation() if names else _bare()
    if out is None:
        print(text, end="")
        return 0
    try:
        Path(out).write_text(text, encoding="utf-8")
    except OSError as error:
        raise StudyError(f"--out '{out}' cannot be written: {error.strerror}") from error
    return 0


def schema_of_this_installation() -> str:
    """Return the schema with all registered names, those of installed plug-ins included."""
    from cleanai_ray import registry
    from cleanai_ray.config.json_schema import schema_text

    kinds = {kind: getattr(registry, kind.upper()) for kind in ("methods", "metrics", "models", "datasets")}
    return schema_text({kind: found.names() for kind, found in kinds.items()})


def _bare() -> str:
    from cleanai_ray.config.json_schema import schema_text

    return schema_text()
