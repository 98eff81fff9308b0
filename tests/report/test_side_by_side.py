"""Several studies side by side."""

from __future__ import annotations

import io
from html import unescape
from pathlib import Path

import pytest
from pypdf import PdfReader
from report import synthetic

from cleanai_ray.cli import main
from cleanai_ray.report.sections.side_by_side import compare_studies
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.storage.schemas import COMPARISON, COMPARISON_FILE


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    first, second = (tmp_path_factory.mktemp(name) for name in ("first", "second"))
    synthetic.make(metrics=("combined",)).write(first)
    other = synthetic.make(methods=("coverage", "magnitude", "random"), metrics=("combined",), accuracy_dense=0.91)
    other.study["name"], other.study["model"]["name"] = "second", "resnet56"
    other.environment["packages"]["torch"] = "2.13.0"
    other.write(second)
    return first, second


def test_what_differs_and_nothing_else(folders: tuple[Path, Path]) -> None:
    found = compare_studies([RunDirectory(folder) for folder in folders])
    assert found.studies == ("fashion-mnist", "second")
    assert {row[0]: row[1:] for row in found.differences} == {
        "model.name": ("resnet20", "resnet56"),
        "sweep.methods": ("coverage, wanda, adaptive, magnitude, taylor, random", "coverage, magnitude, random"),
        "versions.torch": ("2.14.1", "2.13.0"),
    }
    facts = {row[0]: row[1:] for row in found.facts}
    assert facts["trials"] == ("24, 0 failed", "12, 0 failed")
    assert facts["dense top-1"] == ("93.06 %", "91.00 %")


def test_findings_are_pooled_over_cells_of_both(folders: tuple[Path, Path]) -> None:
    answers = {answer.key: answer for answer in compare_studies([RunDirectory(folder) for folder in folders]).answers}
    assert answers["b1"].num_pairs == 8  # 2 ratios x 2 modes in each of two studies
    assert answers["b2"].num_pairs == 4  # only the first has taylor
    assert answers["b1"].verdict == "no"


def test_studies_of_one_name_are_told_apart_by_their_place(folders: tuple[Path, Path], tmp_path: Path) -> None:
    synthetic.make(methods=("wanda",)).write(tmp_path)
    found = compare_studies([RunDirectory(folders[0]), RunDirectory(tmp_path)])
    assert found.studies == tuple(f"fashion-mnist ({folder})" for folder in (folders[0], tmp_path))


def test_the_command_prints_and_writes_only_where_it_is_told_to(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [sorted(folder.rglob("*")) for folder in folders]
    directories = [str(folder) for folder in folders]
    assert main(["compare", *directories]) == 0
    printed = capsys.readouterr().out
    assert "resnet56" in printed
    assert "Is coverage better than magnitude? No." in printed
    assert [sorted(folder.rglob("*")) for folder in folders] == before
    out = tmp_path / "compared"
    assert main(["compare", *directories, "--out", str(out)]) == 0
    assert "comparison.parquet" in capsys.readouterr().out
    run = RunDirectory(out)
    table = run.read_table(COMPARISON_FILE)
    assert table.schema.equals(COMPARISON)
    rows = {row["key"]: row for row in table.to_pylist()}
    assert rows["b1"]["verdict"] == "no"
    assert rows["b1"]["studies"] == ["fashion-mnist", "second"]
    text = " ".join(page.extract_text() for page in PdfReader(io.BytesIO(run.read_bytes("comparison.pdf"))).pages)
    for shown in (text, unescape(run.read_text("comparison.html"))):
        assert rows["b1"]["sentence"] in " ".join(shown.split())
        assert "resnet56" in shown


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["{first}", "{empty}"], ("{empty}", "run directory", "results.parquet", "cleanai run")),
        (["{first}", "{first}"], ("{first}", "twice")),
        (["{first}"], ("run directories is 1", "at least 2")),
    ],
)
def test_a_wrong_directory_is_one_sentence(
    arguments: list[str],
    facts: tuple[str, ...],
    folders: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = [argument.format(first=folders[0], empty=tmp_path) for argument in arguments]
    assert main(["compare", *places]) == 2
    printed = capsys.readouterr()
    assert all(fact.format(first=folders[0], empty=tmp_path) in printed.err for fact in facts)
    assert printed.err.count("\n") == 1
    assert printed.out == ""
