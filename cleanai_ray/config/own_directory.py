"""The run directory of a study that names none."""

from __future__ import annotations

from typing import Any


def in_own_directory(study: Any) -> Any:
    """Return a study document whose run directory is `artifacts/NAME`, if it names none."""
    output = study.get("output", {}) if isinstance(study, dict) else None
    if not isinstance(output, dict) or "dir" in output or not isinstance(study.get("name"), str):
        return study
    return {**study, "output": {**output, "dir": f"artifacts/{study['name']}"}}
