"""The JSON schema of study files, by which editors complete and check them, from the typed sections.

It is written for JSON Schema's draft 7, which every editor knows. It says less than `parse_study`, which also checks
what concerns several keys at once.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from cleanai_ray.config.study import Study
from cleanai_ray.config.switched_off import SWITCHED_OFF

SCHEMA_LINE = "# yaml-language-server: $schema="
"""The start of the first line of a study file, which tells editors where its schema is."""

_NAMED = {
    "methods": ("SweepSection", "methods"),
    "metrics": ("SweepSection", "coverage_metrics"),
    "models": ("ModelSection", "name"),
    "datasets": ("DataSection", "name"),
}


def study_schema(names: Mapping[str, Sequence[str]] | None = None) -> dict[str, Any]:
    """Return the JSON schema of study files.

    Args:
        names: The names that editors propose, by kind: `methods`, `metrics`, `models` or `datasets`. Other names
            remain allowed, for a plug-in may register them.
    """
    document = _simplified(Study.model_json_schema())
    definitions = document["$defs"]
    for key in SWITCHED_OFF:
        section = document["properties"][key]
        document["properties"][key] = {"anyOf": [{"$ref": section.pop("$ref")}, {"type": "null"}], **section}
    for kind, proposed in (names or {}).items():
        section, key = _NAMED[kind]
        _propose(definitions[section]["properties"][key], list(proposed))
    for section in (document, *definitions.values()):
        for declared in section.get("properties", {}).values():
            _describe(declared, definitions)
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "A study of CleanAI-Ray", **document}


def schema_text(names: Mapping[str, Sequence[str]] | None = None) -> str:
    """Return `study_schema` as a JSON file."""
    return json.dumps(study_schema(names), indent=2, ensure_ascii=False) + "\n"


def _simplified(value: Any) -> Any:
    """Return a schema without titles, with docstrings cut to a line, and with lists of one type as draft 7 says it."""
    if isinstance(value, list):
        return [_simplified(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    found = {key: _simplified(entry) for key, entry in value.items()}
    if isinstance(found.get("title"), str):
        del found["title"]
    if isinstance(found.get("description"), str):
        found["description"] = " ".join(inspect.cleandoc(found["description"]).partition("\n\n")[0].split())
    entries = found.pop("prefixItems", None)
    if entries is not None:
        found["items"] = entries[0] if all(entry == entries[0] for entry in entries) else entries
    return found


def _propose(declared: dict[str, Any], names: list[str]) -> None:
    """Let editors propose names for a key that takes text, a list of it, or null."""
    alternatives = [{"enum": names}, {"type": "string"}]
    if "items" in declared:
        declared["items"] = {"anyOf": alternatives}
        return
    if "anyOf" in declared:
        alternatives += [entry for entry in declared["anyOf"] if entry != {"type": "string"}]
    declared.pop("type", None)
    declared["anyOf"] = alternatives


def _describe(declared: dict[str, Any], definitions: Mapping[str, Any]) -> None:
    """Give a key whose value is a section the section's description, if it has none of its own."""
    if "description" in declared:
        return
    entries = [declared, declared.get("items", {}), *declared.get("anyOf", ())]
    for name in (str(entry["$ref"]).rpartition("/")[2] for entry in entries if "$ref" in entry):
        declared["description"] = definitions[name].get("description", "")
