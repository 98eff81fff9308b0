"""The files that a release and GitHub read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from docs_markdown import ROOT, read

import cleanai_ray

TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["version"] == cleanai_ray.__version__
    assert citation["license"] in read("pyproject.toml")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


def test_the_changelog_speaks_of_this_version() -> None:
    assert re.search(rf"\b{re.escape(cleanai_ray.__version__)}\b", read("CHANGELOG.md"))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_issue_templates_have_what_github_needs(template: Path) -> None:
    content = yaml.safe_load(template.read_text(encoding="utf-8"))
    if template.name == "config.yml":
        assert set(content) == {"blank_issues_enabled"}
        return
    assert content["name"]
    assert content["description"]
    names = [item["id"] for item in content["body"]]
    assert len(names) == len(set(names)) > 0
    for item in content["body"]:
        assert item["type"] in {"textarea", "input", "dropdown"}
        assert re.fullmatch(r"[a-z]+", item["id"])
        assert item["attributes"]["label"]
