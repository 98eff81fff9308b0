"""The notebooks of examples/: what stands in them, and that they run."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

import cleanai_ray as cleanai

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
LONGEST_SECONDS = 600
"""The most for one cell, on a machine that does other things meanwhile; all of a notebook take less than a minute."""


def cells(notebook: Path, kind: str) -> list[dict[str, Any]]:
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def outputs(notebook: Path) -> list[dict[str, Any]]:
    return [output for cell in cells(notebook, "code") for output in cell["outputs"]]


def test_there_is_a_notebook_for_each_task() -> None:
    assert {path.stem for path in NOTEBOOKS} == {"prune_your_model", "compare_criteria", "meet_a_latency_budget"}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_run_from_top_to_bottom_and_holds_what_it_showed(notebook: Path) -> None:
    code = cells(notebook, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = [kind for output in outputs(notebook) for kind in output.get("data", {})]
    assert "image/png" in kinds
    assert "text/html" in kinds
    assert {output["output_type"] for output in outputs(notebook)} <= {"stream", "execute_result", "display_data"}
    assert {output["name"] for output in outputs(notebook) if output["output_type"] == "stream"} <= {"stdout"}
    text = notebook.read_text(encoding="utf-8")
    assert len(text) < 500_000
    assert not re.search(r"(?<![A-Za-z0-9_.])/(?:home|root|tmp|work|Users|usr)/", text), "a path of one machine"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_uses_the_public_names_and_what_is_installed_with_the_package(notebook: Path) -> None:
    tree = ast.parse("\n".join("".join(cell["source"]) for cell in cells(notebook, "code")))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "cleanai"
    }
    assert used
    assert used <= set(cleanai.__all__)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= {"altair", "cleanai_ray", "polars", "sklearn.datasets", "torch", "torchvision"}


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_links_of_a_notebook_lead_somewhere(notebook: Path) -> None:
    text = "\n".join("".join(cell["source"]) for cell in cells(notebook, "markdown"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        assert target.startswith("https://") or (EXAMPLES / target).exists(), target


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook: Path, tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    document = nbformat.read(notebook, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(document, timeout=LONGEST_SECONDS, resources=resources).execute()
    kinds = {kind for cell in document.cells for output in cell.get("outputs", ()) for kind in output.get("data", {})}
    assert "image/png" in kinds
