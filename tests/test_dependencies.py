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


def pinned_versions() -> dict[str, str]:
    lines = re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    return {canonicalize_name(name): version for name, version in lines}


def brought_along(name: str, extras: frozenset[str], found: set[str]) -> set[str]:
    """Names of what a distribution needs, and of what that needs, as far as it is installed."""
    for line in metadata.requires(name) or []:
        requirement = Requirement(line)
        needed = requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)
        )
        key = canonicalize_name(requirement.name)
        if not needed or key in found or key.startswith(("nvidia-", "cuda-")):  # torch pins CUDA's libraries itself
            continue
        try:
            metadata.version(key)
        except metadata.PackageNotFoundError:
            continue
        found.add(key)
        brought_along(key, frozenset(requirement.extras), found)
    return found


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="constraints.txt is for Python 3.11")
def test_all_that_is_installed_has_a_version_of_its_own() -> None:
    found = brought_along(PROJECT["name"], frozenset(EXTRAS), set())
    assert {"torch", "scipy", "charset-normalizer", "prometheus-client"} <= found  # of ours, and of what they bring
    assert found - pinned_versions().keys() - {PROJECT["name"]} == set()


def test_the_versions_that_the_tests_ran_with_are_allowed() -> None:
    pinned = pinned_versions()
    for line in [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:  # an extra that is made of others
            assert requirement.extras <= EXTRAS.keys(), line
            continue
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"constraints.txt has no version of {requirement.name}"
        assert requirement.specifier.contains(version), f"{line}, but constraints.txt has {version}"
