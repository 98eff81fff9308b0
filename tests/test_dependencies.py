"""What the package imports is what pyproject.toml declares, and the versions of constraints.txt satisfy it."""

from __future__ import annotations

import ast
import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def imported() -> set[str]:
    """Top-level packages that the package imports, in functions, too."""
    found = set()
    for path in (ROOT / "cleanai_ray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - {"cleanai_ray"} - set(sys.stdlib_module_names)


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def test_everything_imported_is_declared() -> None:
    distributions = metadata.packages_distributions()
    used = EXTRAS.keys() - {"dev", "docs"}
    declared = names(PROJECT["dependencies"]).union(*(names(EXTRAS[extra]) for extra in used))
    modules = imported()
    assert {"torch", "PIL", "yaml"} <= modules
    missing = {
        module
        for module in modules
        if declared.isdisjoint(canonicalize_name(name) for name in distributions.get(module, [module]))
    }
    assert missing == set()


def test_the_versions_that_the_tests_ran_with_are_allowed() -> None:
    pinned = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
    pinned = {canonicalize_name(name): version for name, version in pinned.items()}
    for line in [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:  # an extra that is made of others
            assert requirement.extras <= EXTRAS.keys(), line
            continue
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"constraints.txt has no version of {requirement.name}"
        assert requirement.specifier.contains(version), f"{line}, but constraints.txt has {version}"
