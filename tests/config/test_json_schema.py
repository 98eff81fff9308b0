"""The JSON schema takes every study of the repository, refuses what is misspelt, and is committed as it is made."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml
from jsonschema import Draft7Validator

from cleanai_ray.config.json_schema import SCHEMA_LINE, schema_text, study_schema
from cleanai_ray.config.study import Study
from cleanai_ray.registry import METHODS

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "docs" / "reference" / "study.schema.json"
STUDIES = sorted((ROOT / "jobs" / "studies").glob("*.yaml"))
STUDY: dict[str, Any] = {
    "model": {"name": "resnet20"},
    "data": {"name": "digits"},
    "sweep": {"methods": ["wanda"], "ratios": [0.5]},
}


def errors(document: Any, schema: dict[str, Any] | None = None) -> list[str]:
    validator = Draft7Validator(study_schema() if schema is None else schema)
    return ["/".join(map(str, error.absolute_path)) for error in validator.iter_errors(document)]


@pytest.mark.skipif(
    tuple(map(int, pydantic.VERSION.split(".")[:2])) < (2, 11),
    reason="an older pydantic writes the same in other words",
)
def test_the_committed_schema_is_up_to_date() -> None:
    assert json.loads(COMMITTED.read_text(encoding="utf-8")) == json.loads(schema_text()), (
        "make it again: cleanai schema --no-names --out docs/reference/study.schema.json"
    )


def test_it_is_a_schema() -> None:
    Draft7Validator.check_schema(study_schema())


@pytest.mark.parametrize("path", [*STUDIES, ROOT / "tests" / "golden" / "study.yaml"], ids=lambda path: path.stem)
def test_every_study_is_valid(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert errors(yaml.safe_load(text)) == []
    assert errors(yaml.safe_load(Study.model_validate(yaml.safe_load(text)).to_yaml())) == [], "as a run writes it"


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_first_line_of_a_study_leads_to_the_schema(path: Path) -> None:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    assert first.startswith(SCHEMA_LINE)
    assert (path.parent / first.removeprefix(SCHEMA_LINE)).resolve() == COMMITTED


@pytest.mark.parametrize(
    ("section", "key", "value", "where"),
    [
        ("sweep", "ratios", [1.5], "sweep/ratios/0"),
        ("sweep", "ratioz", [0.5], "sweep"),
        ("sweep", "methods", [], "sweep/methods"),
        ("data", "batch_size", "many", "data/batch_size"),
        ("model", "input_shape", [], "model/input_shape"),
        ("output", "save_models", "most", "output/save_models"),
    ],
)
def test_what_is_wrong_is_found_where_it_is(section: str, key: str, value: Any, where: str) -> None:
    document = copy.deepcopy(STUDY)
    assert errors(document) == []
    document.setdefault(section, {})[key] = value
    assert errors(document) == [where]


def test_every_key_says_what_it_means() -> None:
    schema = study_schema()
    sections = {"": schema, **schema["$defs"]}
    assert {"ModelSection", "SweepSection", "Budget", "EarlyStoppingSection"} <= set(sections)
    silent = [
        f"{name}.{key}"
        for name, section in sections.items()
        for key, declared in section["properties"].items()
        if not declared.get("description")
    ]
    assert silent == []


def test_names_are_proposed_and_others_allowed() -> None:
    schema = study_schema({"methods": METHODS.names(), "models": ["resnet20"]})
    proposed = schema["$defs"]["SweepSection"]["properties"]["methods"]["items"]["anyOf"][0]["enum"]
    assert proposed == list(METHODS.names())
    document = copy.deepcopy(STUDY)
    assert errors(document, schema) == []
    document["sweep"]["methods"], document["model"] = ["of_a_plugin"], {"name": None, "factory": "a.b:c"}
    assert errors(document, schema) == []
    document["sweep"]["methods"] = [3]
    assert errors(document, schema) == ["sweep/methods/0"]
