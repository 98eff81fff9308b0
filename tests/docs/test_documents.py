"""Links, code and study files of the documentation."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import reference_pages
import repository_links
import typer
import yaml
from docs_markdown import DOCUMENTS, ROOT, Block, anchors, blocks, read, spans

from cleanai_ray import cli
from cleanai_ray.config.study import Study, parse_study

BASE = {
    "model": {"name": "resnet20"},
    "data": {"name": "digits"},
    "sweep": {"methods": ["coverage"], "ratios": [0.5], "steps": [1, 2]},
}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 8192


@pytest.mark.parametrize("document", DOCUMENTS)
def test_relative_links_resolve(document: str) -> None:
    generated = {f"docs/{path}" for path in reference_pages.PAGES}
    for link, path, anchor in repository_links.relative_links(document, read(document)):
        assert (ROOT / path).exists() or path in generated, link
        assert path not in generated or document == "docs/reference/index.md", f"{link}: missing without the site"
        if path.endswith(".md") and path not in generated:
            is_a_page = path.startswith("docs/") or path in repository_links.ELSEWHERE
            assert is_a_page, f"{link}: no page of the site; docs/tools/repository_links.py lists those outside docs/"
            assert not anchor or anchor in anchors(path), link


def test_the_site_lists_every_page() -> None:
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [*reference_pages.PAGES, *map(repository_links.site_path, repository_links.documents())]
    assert [page for page in pages if not re.search(rf": {re.escape(page)}$", config, re.MULTILINE)] == []


def test_links_are_rewritten_for_the_site() -> None:
    text = "[a](../CONTRIBUTING.md#tests) `[b](../x)` ![c](../artifacts/pictures/p.svg) [d](#e) [f](https://g.org) "
    text += "[h](data.md)"
    assert repository_links.for_the_site("docs/how-to.md", text) == (
        "[a](contributing.md#tests) `[b](../x)` ![c](repository/artifacts/pictures/p.svg) [d](#e) [f](https://g.org) "
        "[h](data.md)"
    )
    assert repository_links.for_the_site("README.md", "[a](docs/concepts/index.md)") == "[a](concepts/index.md)"
    picture = '<picture><source media="(a)" srcset="{0}/d.svg"><img alt="a" src="{0}/l.svg"></picture> `<img src="x">`'
    assert repository_links.for_the_site("README.md", picture.format("docs/images")) == picture.format("images")
    assert repository_links.for_the_site("cluster/README.md", "[a](../docs/gpus.md)") == "[a](../gpus.md)"


@pytest.mark.parametrize("block", blocks("python", "py"), ids=str)
def test_python_parses(block: Block) -> None:
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "cleanai":
            import cleanai_ray

            assert node.attr in cleanai_ray.__all__, node.attr


def merged(document: dict[str, Any]) -> dict[str, Any]:
    """Return a study with what a fragment lacks."""
    study: dict[str, Any] = {key: dict(value) for key, value in BASE.items()}
    for key, value in document.items():
        if isinstance(value, dict) and key in study:
            if key == "model" and "factory" in value:
                study[key].pop("name")
            if key == "sweep" and "budgets" in value:
                study[key].pop("ratios")
            study[key].update(value)
        else:
            study[key] = value
    return study


@pytest.fixture
def shown_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions that the guide to tasks shows, in the module that its study names."""
    (source,) = (block.text for block in blocks("python") if "def focal(" in block.text)
    module = ModuleType("my_package.scores")
    exec(source, module.__dict__)
    monkeypatch.setitem(sys.modules, "my_package", ModuleType("my_package"))
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.usefixtures("shown_functions")
@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_studies_and_parts_of_them_are_valid(block: Block) -> None:
    document = yaml.safe_load(block.text)
    assert set(document) <= set(Study.model_fields), "neither a study nor sections of one"
    parse_study(document if BASE.keys() <= document.keys() else merged(document))


SECTION = re.compile(rf"({'|'.join(Study.model_fields)}): \{{.*\}}")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_sections_in_running_text_are_valid(document: str) -> None:
    for span in spans(document):
        if SECTION.fullmatch(span) and "N}" not in span and "..." not in span:
            content = yaml.safe_load(span)
            (section,) = content.values()
            if None not in section.values():  # {keys, alone} name keys without values
                parse_study(merged(content))
            else:
                known = Study.model_fields[next(iter(content))].annotation.model_fields  # type: ignore[union-attr]
                assert set(section) <= set(known), span


def commands() -> list[tuple[str, list[str]]]:
    """Return every command line of the documents' shell blocks, with where it stands."""
    found = []
    for block in blocks("bash", "sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                found.append((str(block), words))
    return found


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = [
        (where, word) for where, words in commands() if words[0] == "make" for word in words[1:] if "=" not in word
    ]
    assert named
    assert [item for item in named if item[1] not in targets] == []


def test_scripts_and_studies_exist() -> None:
    pattern = re.compile(r"(?<![\w/])(?:jobs|cluster|tests|\.ci)/[\w/.-]+\.(?:py|yaml|sbatch|json)\b")
    named = {name for document in DOCUMENTS for name in pattern.findall(read(document))}
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_commands_and_options_exist() -> None:
    group: Any = typer.main.get_command(cli.app)
    used = [(where, words) for where, words in commands() if Path(words[0]).name == "cleanai"]
    assert len(used) > 10
    own = {name for item in group.params for name in item.opts}
    for where, words in used:
        assert words[1] in group.commands or words[1] in {"--help", *own}, where
        if words[1] in group.commands:
            known = {name for item in group.commands[words[1]].params for name in item.opts}
            assert {word for word in words if word.startswith("--")} <= known, where
