"""Notes that workers leave in the run directory for its record: warnings, information, and where they computed."""

from __future__ import annotations

from typing import Any, Literal

from cleanai_ray.config.digests import digest
from cleanai_ray.config.study import Study
from cleanai_ray.stages.fingerprints import data_key
from cleanai_ray.storage.run_directory import RunDirectory

Kind = Literal["warnings", "information", "workers"]

_TEXTS: tuple[Kind, ...] = ("warnings", "information")


def read_notes(study: Study, run: RunDirectory, kind: Kind) -> dict[str, Any]:
    """Return the notes of one kind that workers of this study have left, by name."""
    return run.read_json(_file(kind)) if run.is_complete(_file(kind), _key(study)) else {}


def add_notes(study: Study, run: RunDirectory, kind: Kind, found: dict[str, Any]) -> None:
    """Add notes to those of the study; a note replaces an earlier one of the same name."""
    before = read_notes(study, run, kind)
    if any(before.get(name) != value for name, value in found.items()):
        run.write_json(_file(kind), dict(sorted({**before, **found}.items())))
        run.mark(_file(kind), _key(study))


def describe_notes(study: Study, run: RunDirectory) -> dict[str, list[Any]]:
    """Return the notes as environment.json holds them: `warnings`, `information`, and a description of every worker."""
    workers = read_notes(study, run, "workers")
    texts: dict[str, list[Any]] = {kind: list(read_notes(study, run, kind)) for kind in _TEXTS}
    return {**texts, "workers": list(workers.values())}


def _file(kind: Kind) -> str:
    return f"cache/{kind}.json"


def _key(study: Study) -> str:
    return digest([data_key(study), study.model.model_dump(mode="json"), study.numerics.model_dump()])
