"""The files that a release and GitHub read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from docs_markdown import ROOT, read

import cleanai_ray

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
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


def jobs(workflow: Path) -> dict[str, Any]:
    """Return the jobs of a workflow by name."""
    return yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_calls_what_is_there(workflow: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), flags=re.MULTILINE))
    commands = [step["run"] for job in jobs(workflow).values() for step in job.get("steps", ()) if "run" in step]
    called = [target for command in commands for target in re.findall(r"\bmake ([a-z-]+)", command)]
    assert set(called) <= targets
    scripts = [name for command in commands for name in re.findall(r"(\.ci/[\w.]+)", command)]
    assert called or scripts
    assert [name for name in scripts if not (ROOT / name).is_file()] == []
    reused = [job["uses"] for job in jobs(workflow).values() if "uses" in job]
    assert all((ROOT / name).is_file() for name in reused)


def test_only_what_was_tested_and_built_is_published_and_without_a_secret() -> None:
    workflow = ROOT / ".github" / "workflows" / "release.yml"
    found = jobs(workflow)
    assert (found["publish"]["needs"], found["build"]["needs"]) == ("build", "test")
    writers = [name for name, job in found.items() if "id-token" in job.get("permissions", {})]
    assert writers == ["publish"]
    assert yaml.safe_load(workflow.read_text())["permissions"] == {"contents": "read"}
    assert "secrets." not in workflow.read_text()


def test_continuous_integration_runs_the_lower_bounds() -> None:
    commands = [step.get("run", "") for job in jobs(WORKFLOWS[0]).values() for step in job.get("steps", ())]
    assert WORKFLOWS[0].name == "ci.yml"
    assert ".ci/run" in commands
    assert any("make test-lower-bounds" in command for command in commands)
