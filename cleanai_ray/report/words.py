"""A report in the words of its study's score, where that is not accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from cleanai_ray.analysis.score_words import ScoreWords
from cleanai_ray.report.blocks import Code, Figure

T = TypeVar("T")
_TEXTS = ("title", "text", "subtitle", "labelExpr", "domain", "sort")
"""Keys of a Vega-Lite specification whose values are texts that a reader sees; the last two hold entries of data."""

_DATA = ("datasets", "values")
"""Keys whose values are data, in which texts are names of what is shown."""


def in_words(value: T, words: ScoreWords) -> T:
    """Return a document, or a part of one, in the words of a score; code and names of files stay as they are."""
    found: Any = value
    if isinstance(value, str):
        found = words.write(value)
    elif isinstance(value, tuple):
        found = tuple(in_words(item, words) for item in value)
    elif is_dataclass(value) and not isinstance(value, (type, Code, Figure)):
        found = replace(value, **{each.name: in_words(getattr(value, each.name), words) for each in fields(value)})
    return found


def chart_in_words(specification: Mapping[str, Any], words: ScoreWords) -> dict[str, Any]:
    """Return a chart's specification with its titles and texts in the words of a score, those in its data included."""
    found: dict[str, Any] = _walk(specification, words, shown=False)
    return found


def _walk(value: Any, words: ScoreWords, *, shown: bool) -> Any:
    """Return a part of a specification; where `shown`, every text in it is one that a reader sees."""
    if isinstance(value, Mapping):
        return {key: _walk(item, words, shown=shown or _is_shown(key, item)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_walk(item, words, shown=shown) for item in value]
    return words.write(value) if shown and isinstance(value, str) else value


def _is_shown(key: str, value: Any) -> bool:
    return key in _DATA or (key in _TEXTS and not isinstance(value, Mapping))
