"""The `a.b=c` overrides of a study file's keys."""

from __future__ import annotations

from typing import Any

import yaml

from cleanai_ray.config.messages import show
from cleanai_ray.errors import StudyError


def yaml_problem(error: yaml.YAMLError) -> str:
    """Return where and why a text is not YAML, in a few words."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def apply_override(document: dict[str, Any], override: str) -> None:
    """Set one key of a study given as nested dicts.

    Args:
        document: The study; it is changed.
        override: `a.b=c`, with a value in YAML.

    Raises:
        StudyError: When the override has another form, its value is not YAML, or a section on its way is none.
    """
    path, separator, text = override.partition("=")
    if not separator or not all(part.strip() for part in path.split(".")):
        raise StudyError(f"--set '{override}' is not of the form a.b=c")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise StudyError(f"--set {path}: '{text}' is not a YAML value: {yaml_problem(error)}") from error
    *parents, leaf = (part.strip() for part in path.split("."))
    section = document
    for depth, key in enumerate(parents):
        child = section.setdefault(key, {})
        if child is None:
            child = section[key] = {}
        if not isinstance(child, dict):
            raise StudyError(f"--set {path}: '{'.'.join(parents[: depth + 1])}' is {show(child)}, which has no keys")
        section = child
    section[leaf] = value
