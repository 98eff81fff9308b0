"""The house keeps its rules: who imports whom, what a module drags along, how long things are."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "cleanai_ray"
FILES = sorted(PACKAGE.rglob("*.py"))

# From the ground up. A module imports what is in its own row or in a row above it, never from below.
LAYERS = (
    ("errors", "registry", "modules", "merging", "calibration_draw"),
    (
        "sections",
        "sweep_section",
        "finetune_section",
        "evaluation_section",
        "recommend_section",
        "study_messages",
        "study",
        "results",
        "artifacts",
        "locking",
        "status",
    ),
    ("models", "data", "statistics"),
    (
        "coverage",
        "importance",
        "pruning",
        "repair",
        "tasks",
        "training",
        "evaluation",
        "export",
        "quantization",
        "charts",
        "report",
    ),
    ("sensitivity",),
    (
        "api",
        "saving",
        "tuning",
        "workspace",
        "calibration_shards",
        "keys",
        "trial_clock",
        "trial_columns",
        "trial_scores",
        "siblings",
        "trial_quantization",
    ),
    ("dense_measures", "recovery", "stepwise", "float_stages", "tables"),
    ("stages", "followers", "environment", "deployment"),
    ("planning", "distributed"),
    ("cli", "__init__", "__main__"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
HOMES = {
    "torch_pruning": ("pruning/graph.py", "pruning/tracing.py"),
    "reportlab": ("report/",),
    "ray": ("distributed/",),
}
SOURCE_SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".sh", ".cfg", ".json", ".html", ""}


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Every module that a file imports, wherever in the file; `from a import b` counts as a.b, too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(file: Path) -> str:
    """The row's name of a file: its package, or its own name where it lies at the top."""
    inside = file.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_a_module_imports_only_what_lies_beneath_it(file: Path) -> None:
    part = part_of(file)
    assert part in RANK, f"'{part}' has no place in LAYERS"
    for module in imported_modules(ast.parse(file.read_text())):
        words = module.split(".")
        if words[0] != "cleanai_ray" or len(words) == 1:
            continue
        if words[1] in RANK:
            assert RANK[words[1]] <= RANK[part], f"{part} (row {RANK[part]}) imports {module} (row {RANK[words[1]]})"
        else:
            # A name of the public package: only what is built on top of the whole package may ask for it.
            assert RANK[part] == RANK["cli"], f"{part} imports {module}, which the package's top offers"


@pytest.mark.parametrize("library", HOMES)
def test_a_heavy_library_is_imported_in_one_place(library: str) -> None:
    importers = {
        str(file.relative_to(PACKAGE))
        for file in FILES
        if any(module.split(".")[0] == library for module in imported_modules(ast.parse(file.read_text())))
    }
    assert importers, f"nothing imports {library}: drop it from the requirements, or from this test"
    assert all(importer.startswith(HOMES[library]) for importer in importers), importers


def loaded_after(statement: str) -> set[str]:
    """The top-level modules that a fresh process has loaded after a statement."""
    program = f"import sys\n{statement}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd="/")
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import cleanai_ray.report", {"torch", "torchvision", "torch_pruning", "ray"}),
        ("from cleanai_ray.report import pdf, html", {"torch", "torchvision", "torch_pruning", "ray"}),
        ("from cleanai_ray.registry import CHARTS; CHARTS.names()", {"torch", "torchvision", "torch_pruning", "ray"}),
        ("import cleanai_ray.study, cleanai_ray.results, cleanai_ray.artifacts", {"torch", "ray", "reportlab"}),
        ("import cleanai_ray.cli, cleanai_ray.status", {"torch", "ray", "reportlab"}),
        ("import cleanai_ray.stages", {"ray", "reportlab"}),
        ("import cleanai_ray; cleanai_ray.prune", {"ray", "reportlab"}),
        ("import cleanai_ray.distributed.writer", {"torch", "torchvision", "torch_pruning", "scipy"}),
        ("import cleanai_ray.distributed.trial_work", {"torchvision", "pandas", "altair"}),
    ],
)
def test_an_import_does_not_drag_along_what_it_does_not_need(statement: str, unwanted: set[str]) -> None:
    loaded = loaded_after(statement)
    assert "cleanai_ray" in loaded
    assert not loaded & unwanted


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(REPOSITORY)))
def test_files_and_functions_can_be_read_in_one_go(file: Path) -> None:
    text = file.read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            documented = (ast.get_docstring(node, clean=False) or "").count("\n")
            assert node.end_lineno - node.lineno - documented < 50, f"{node.name} at line {node.lineno}"


def tracked_files() -> list[Path]:
    """The files of the project, without what git ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    return [REPOSITORY / line for line in listed.stdout.splitlines()]


def test_no_path_of_one_machine_stands_in_the_tree() -> None:
    # Put together here, so that this file does not hold what it looks for.
    unwanted = ["/" + folder + "/" for folder in ("work", "root", "farm", "Users")] + ["/tmp/" + "dev"]
    found = [
        f"{file.relative_to(REPOSITORY)}:{number}: {line.strip()[:120]}"
        for file in tracked_files()
        if file.suffix in SOURCE_SUFFIXES and file.is_file()
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), start=1)
        if any(path in line for path in unwanted)
    ]
    assert not found
