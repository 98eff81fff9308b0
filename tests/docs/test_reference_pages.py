"""The generated reference says what the code says."""

from __future__ import annotations

import ast
import re

import pytest
import reference_pages
import typer
from docs_markdown import ROOT, read

from cleanai_ray import cli, registry
from cleanai_ray.storage import schemas


@pytest.fixture(scope="module")
def study_page() -> str:
    return reference_pages.study_page()


def test_every_key_has_a_row_with_a_meaning(study_page: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \| .* \| (.*) \|$", study_page, flags=re.MULTILINE)
    keys = [name for _, section in reference_pages.study_sections() for name in section.model_fields]
    assert [name for name, _ in rows] == keys
    assert all(meaning.strip() for _, meaning in rows)
    paths = [path for path, _ in reference_pages.study_sections()]
    assert len(paths) == len(set(paths))
    assert {"data.calibration", "sweep.budgets", "evaluation.latency", "finetune.early_stopping"} <= set(paths)


def test_a_key_is_shown_with_its_default_and_what_is_allowed(study_page: str) -> None:
    assert "| `max_ratio` | `0.9` | a number above 0 and below 1 | No group" in study_page
    assert "| `budgets` | `[]` | a list of mappings | " in study_page
    assert "| `name` | *needed* | text | A name of `cleanai list datasets`. |" in study_page


def test_every_table_and_column_is_there() -> None:
    page = reference_pages.tables_page()
    chapters = dict(re.findall(r"^## (\S+)\n(.*?)(?=^## |\Z)", page, flags=re.MULTILINE | re.DOTALL))
    files = {getattr(schemas, name) for name in dir(schemas) if name.endswith("_FILE")}
    assert set(chapters) == files
    columns = re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+", chapters[schemas.RESULTS_FILE], flags=re.MULTILINE)
    assert columns == schemas.RESULTS.names
    for metric in registry.METRICS.names():
        assert f"| `{metric}` | number |" in chapters[schemas.COVERAGE_FILE]


def test_every_command_and_option_is_there() -> None:
    page = reference_pages.command_line_page()
    for name, command in typer.main.get_command(cli.app).commands.items():  # type: ignore[attr-defined]
        chapter = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        for item in command.params:
            assert (
                item.name == "help"
                or f"`{item.opts[0] if item.opts[0][0] == '-' else item.metavar or item.name.upper()}`" in chapter
            )


def test_every_registered_name_is_there() -> None:
    page = reference_pages.names_page()
    for kind in cli.KINDS:
        chapter = page.partition(f"\n## {kind}\n")[2].partition("\n## ")[0]
        for name in getattr(registry, kind.upper()).names():
            assert f"| `{name}` |" in chapter
    assert "| `variant='consumer'` |" in page


def test_the_environment_variables_are_those_that_the_code_names() -> None:
    """Every name that is read from or written to os.environ, as a literal or as a constant of its module."""
    found = set()
    for file in (ROOT / "cleanai_ray").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        constants = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            name = None
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                if ast.unparse(node.func.value) == "os.environ":
                    name = node.args[0]
            elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
                name = node.slice
            if isinstance(name, ast.Constant):
                found.add(name.value)
            elif isinstance(name, ast.Name):
                found.add(constants[name.id])
    assert "CLEANAI_CACHE" in found
    named = set(
        re.findall(r"`([A-Z][A-Za-z]+_[A-Za-z_]+|PYTHONPATH)`", read("docs/reference/environment-variables.md"))
    )
    others = {
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "RAY_AUTH_TOKEN",
        "RAY_AUTH_TOKEN_PATH",
    }  # of Ray and pyarrow
    assert named - others == found


def test_the_exit_codes_are_those_of_the_command_line() -> None:
    files = [ROOT / "cleanai_ray" / "cli.py", *(ROOT / "cleanai_ray" / "commands").glob("*.py")]
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    returned = {int(code) for code in re.findall(r"return (\d+)\b", source)} | {0, 1}
    table = {
        int(code) for code in re.findall(r"^\| (\d+) \|", read("docs/reference/exit-codes.md"), flags=re.MULTILINE)
    }
    assert table == returned
