"""Reports of studies that went wrong, are small, are large or lack files."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from pypdf import PdfReader
from report import synthetic
from report.reading import outline_of, read_pdf, text_of

from cleanai_ray.errors import ArtifactError
from cleanai_ray.report import make_report
from cleanai_ray.report.blocks import Chapter, Column, Document, Paragraph, Table
from cleanai_ray.report.pdf.document import to_pdf
from cleanai_ray.storage.run_directory import RunDirectory


def test_what_comes_from_the_tables_is_escaped(tmp_path: Path) -> None:
    tables = synthetic.fail(synthetic.make(methods=("wanda",)), error="<b>bad</b> & \N{GREEK SMALL LETTER CHI}")
    run = tables.write(tmp_path)
    make_report(run)
    text = run.read_text("report.html")
    assert "<b>bad</b>" not in text
    assert "&lt;b&gt;bad&lt;/b&gt; &amp;" in text
    assert "<b>bad</b> &" in text_of(read_pdf(run))


def test_all_failed(tmp_path: Path) -> None:
    tables = synthetic.fail(synthetic.make(methods=("wanda", "random")), error="shape mismatch")
    run = tables.write(tmp_path)
    make_report(run)
    text = text_of(read_pdf(run))
    assert "all 8 trials failed" in text
    squeezed = text.replace(" ", "")
    assert all(row["error"].replace(" ", "") in squeezed for row in tables.results)
    assert "acceptable by the checks" not in text.lower()
    assert outline_of(read_pdf(run))[1] == "Risks"


def test_a_bad_model_is_not_praised(tmp_path: Path) -> None:
    tables = synthetic.make(methods=("wanda", "random"))
    for row in tables.results:
        row["accuracy"] = 0.09
        row["latency_ms_b1_p50"] = row["latency_ms_b1_p50_dense"] / 0.4
    run = tables.write(tmp_path)
    make_report(run)
    cover = " ".join(read_pdf(run).pages[0].extract_text().split())
    assert "Not acceptable" in cover
    assert "near chance" in cover
    for text in (text_of(read_pdf(run)), run.read_text("report.html")):
        assert "Acceptable by the checks" not in text
        assert "ready for deployment" not in text


@pytest.mark.parametrize("options", [{"repair": False, "timed": False}, {"finetune_epochs": 2}], ids=["bare", "tuned"])
def test_a_single_trial(options: dict, tmp_path: Path) -> None:
    run = synthetic.make(methods=("wanda",), ratios=(0.3,), modes=("local",), **options).write(tmp_path)
    make_report(run)
    reader = read_pdf(run)
    assert len(reader.pages) <= 10
    assert ("Speed" in text_of(reader)) == options.get("timed", True)
    assert run.exists("charts/finetune_curves.svg") == ("finetune_epochs" in options)


def test_of_many_trials_print_lists_few(tmp_path: Path) -> None:
    tables = synthetic.make(
        methods=("coverage", "wanda", "magnitude", "random", "a_method_with_a_long_name"),
        ratios=(0.1, 0.2, 0.3, 0.4),
        budgets=("params=0.5",),
        seeds=(0, 1),
        network="resnet50",
        num_classes=1000,
        finetune_epochs=2,
    )
    run = tables.write(tmp_path)
    make_report(run)
    pages = [page.extract_text() for page in read_pdf(run).pages]
    rows = [text for text in pages if "id ends in" in text]
    assert 1 <= len(rows) <= 2
    assert len(tables.results) == 160


def test_a_long_table_repeats_its_header_on_every_page() -> None:
    rows = tuple((f"row {number}", "text") for number in range(200))
    table = Table((Column("a title", 0.5), Column("another", 0.5)), rows)
    document = Document("name", "", "", (), (Chapter("Tables", (table,)),))
    pages = [page.extract_text() for page in PdfReader(io.BytesIO(to_pdf(document))).pages]
    with_rows = [text for text in pages if "row " in text]
    assert len(with_rows) >= 4
    assert all("a title" in text and "another" in text for text in with_rows)


def test_only_results_are_needed(tmp_path: Path) -> None:
    run = synthetic.make(methods=("wanda",)).write(tmp_path)
    for name in ("layers.parquet", "coverage.parquet", "history.parquet", "latency.parquet", "study.yaml"):
        run.delete(name)
    run.delete("environment.json")
    make_report(run)
    text = text_of(read_pdf(run))
    assert "The run directory lacks layers.parquet" in text
    assert "cannot be repeated" in text


def test_charts_of_an_earlier_report_do_not_stay(tmp_path: Path) -> None:
    run = synthetic.make(methods=("wanda",), finetune_epochs=2).write(tmp_path)
    make_report(run)
    assert run.exists("charts/finetune_curves.svg")
    synthetic.make(methods=("wanda",)).write(tmp_path)
    make_report(run)
    assert not run.exists("charts/finetune_curves.svg")


def test_without_results_there_is_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"holds no results\.parquet"):
        make_report(RunDirectory(tmp_path))
    tables = synthetic.make(methods=("wanda",))
    tables.results = []
    with pytest.raises(ArtifactError, match="holds no trial"):
        make_report(tables.write(tmp_path))


def test_broken_files_are_named(tmp_path: Path) -> None:
    run = synthetic.make(methods=("wanda",)).write(tmp_path)
    run.write_text("study.yaml", "a: [1")
    with pytest.raises(ArtifactError, match=r"study\.yaml"):
        make_report(run)


@pytest.mark.parametrize(("lines", "place"), [(5, 3), (30, 4)], ids=["nearly empty", "half full"])
def test_a_chapter_that_starts_a_page_leaves_none_nearly_empty(lines: int, place: int) -> None:
    """Cover, contents and then two chapters: the second begins below the first where that is short."""
    before = Chapter("Before", (Paragraph("a line of text"),) * lines, starts_page=True)
    document = Document("t", "", "", (), (before, Chapter("After", (Paragraph("text"),), starts_page=True)))
    texts = [page.extract_text() for page in PdfReader(io.BytesIO(to_pdf(document))).pages]
    assert "Before" in texts[2]
    assert [number for number, text in enumerate(texts, 1) if number > 2 and "After" in text] == [place]
