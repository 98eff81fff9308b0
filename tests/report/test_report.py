"""The PDF and the HTML page that a customer gets."""

from __future__ import annotations

import itertools
import re
from html import unescape
from html.parser import HTMLParser

import pytest
from report import synthetic
from report.reading import outline_of, read_pdf, text_of

from cleanai_ray.analysis.findings import find
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.report import make_report
from cleanai_ray.report.html.page import embed_svg
from cleanai_ray.report.pdf.style import MOST_TRIALS
from cleanai_ray.report.pdf.vector import flat, wrap_code
from cleanai_ray.report.sections.reproduction import _earlier
from cleanai_ray.storage.run_directory import RunDirectory

CHARTS = (
    "accuracy_by_method",
    "accuracy_latency",
    "accuracy_macs",
    "channel_overlap",
    "coverage_heatmap",
    "dense_vs_best",
    "differences",
    "layer_channels",
    "recovery",
    "time_by_stage",
)


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[synthetic.Tables, RunDirectory, list[str]]:
    tables = synthetic.make()
    run = tables.write(tmp_path_factory.mktemp("quickstart"))
    return tables, run, make_report(run)


def test_writes_what_it_says(quickstart: tuple[synthetic.Tables, RunDirectory, list[str]]) -> None:
    _, run, names = quickstart
    assert set(names) == {f"charts/{name}.svg" for name in CHARTS} | {"report.pdf", "report.html"}
    assert all(run.exists(name) for name in names)


def test_pdf_holds_the_headline_numbers(quickstart: tuple[synthetic.Tables, RunDirectory, list[str]]) -> None:
    tables, run, _ = quickstart
    best = max(tables.results, key=lambda row: row["accuracy"])
    reader = read_pdf(run)
    cover = " ".join(reader.pages[0].extract_text().split())
    assert f"{100 * best['accuracy']:.1f} %" in cover
    assert f"{100 * best['accuracy_dense']:.1f} %" in cover
    assert f"{100 * (1 - best['macs'] / best['macs_dense']):.0f} % fewer MACs" in cover
    assert f"{100 * (1 - best['params'] / best['params_dense']):.0f} % fewer parameters" in cover
    assert f"{best['latency_ms_b1_p50_dense'] / best['latency_ms_b1_p50']:.2f}\N{MULTIPLICATION SIGN}" in cover
    assert tables.study["question"] in cover
    assert best["trial_id"] in text_of(reader)


def test_pdf_lists_the_first_trials_in_order(quickstart: tuple[synthetic.Tables, RunDirectory, list[str]]) -> None:
    tables, run, _ = quickstart
    text = text_of(read_pdf(run))
    text = text[text.index("id ends in") :]
    ranked = sorted(tables.results, key=lambda row: -row["accuracy"])[:MOST_TRIALS]
    positions = [text.index(row["trial_id"][-8:]) for row in ranked]
    distinct = [place for place, row in zip(positions, ranked, strict=True) if _is_unique(row, ranked)]
    assert distinct == sorted(distinct)
    assert len(distinct) > 20


def _is_unique(row: dict, rows: list[dict]) -> bool:
    return sum(other["accuracy"] == row["accuracy"] for other in rows) == 1


def test_findings_and_recommendation_stand_in_both(
    quickstart: tuple[synthetic.Tables, RunDirectory, list[str]],
) -> None:
    _, run, _ = quickstart
    found = find(StudyFrames.load(run))
    pdf, page = text_of(read_pdf(run)), unescape(run.read_text("report.html"))
    assert found.recommendation.trial is not None
    for text in (pdf, page):
        assert found.recommendation.trial["trial_id"] in text
        assert found.recommendation.why in text
        for answer in found.answers:
            assert answer.question in text
    told = [answer.sentence for answer in found.answers if answer.effect is not None]
    assert all(sentence in page for sentence in told)
    broken = [sentence for sentence in told if sentence not in pdf]
    assert len(broken) <= 1  # by the end of a page, whose number then stands within it
    assert all(sentence[:30] in pdf and sentence[-30:] in pdf for sentence in broken)


def test_pdf_says_how_to_reproduce(quickstart: tuple[synthetic.Tables, RunDirectory, list[str]]) -> None:
    tables, run, _ = quickstart
    text = text_of(read_pdf(run))
    environment = tables.environment
    assert environment["command"] in text
    assert all(value in text for value in environment["digests"].values())
    assert environment["hardware"]["cpu"] in text
    assert all(f"{name} {version}" in text for name, version in environment["packages"].items())
    assert "coverage_metrics: - normalized_mean" in text


def test_earlier_runs_are_counted_from_the_first_one() -> None:
    runs = [{"started": "2026-01-02T03:04:05+00:00", "seconds": 3.0}, {"started": "2026-02-02T03:04:05+00:00"}]
    assert _earlier(runs) == "2 runs; the first started 2026-01-02 03:04 UTC"
    assert _earlier([{}]) == "1 run"
    assert _earlier([]) == _earlier(None) == ""


def test_pdf_has_pages_outline_and_metadata(quickstart: tuple[synthetic.Tables, RunDirectory, list[str]]) -> None:
    _, run, _ = quickstart
    reader = read_pdf(run)
    total = len(reader.pages)
    assert 7 <= total <= 15
    for number, page in enumerate(reader.pages, start=1):
        assert f"{number} of {total}" in page.extract_text()
        assert len(page.extract_text()) > 150
    sections = ["Summary", "Comparisons", "Findings", "Results", "Every trial", "Best trial", "Risks"]
    assert outline_of(reader)[1:] == [*sections, "How to reproduce"]
    assert reader.metadata is not None
    assert reader.metadata.author == "CleanAI-Ray"
    assert reader.metadata.title == "Pruning study fashion-mnist"


def test_the_contents_name_the_page_of_every_part_and_lead_there(
    quickstart: tuple[synthetic.Tables, RunDirectory, list[str]],
) -> None:
    reader = read_pdf(quickstart[1])
    contents = reader.pages[1]
    lines = [line.strip() for line in contents.extract_text().splitlines()]
    named = lines[lines.index("Contents") + 1 :]
    stated = {title: int(page) for title, page in itertools.pairwise(named) if page.isdigit() and not title.isdigit()}
    sections = [entry for entry in reader.outline[1:] if not isinstance(entry, list)]
    assert len(sections) == 8
    for entry in sections:
        assert stated[entry.title] == reader.get_destination_page_number(entry) + 1, entry.title
    for title in ("What to take", "Time spent by stage", "Study file"):
        page = reader.pages[stated[title] - 1]
        assert title in page.extract_text().splitlines(), "a heading or a chart"
    targets = [link.get_object()["/Dest"][0].get_object() for link in contents["/Annots"]]
    assert {reader.get_page_number(target) + 1 for target in targets} == set(stated.values())
    assert min(stated.values()) == 3, "what stands on the cover has been seen"


def test_charts_in_the_pdf_are_vectors_with_embedded_fonts(
    quickstart: tuple[synthetic.Tables, RunDirectory, list[str]],
) -> None:
    reader = read_pdf(quickstart[1])
    forms = [form for page in reader.pages for form in page["/Resources"].get("/XObject", {}).values()]
    assert [form["/Subtype"] for form in forms] == ["/Form"] * len(CHARTS)
    assert not any(page.images for page in reader.pages)
    assert "Differences from magnitude, in points of top-1" in reader.pages[0].extract_text()
    fonts = [font for form in forms for font in form["/Resources"]["/Font"].values()]
    assert fonts
    for font in fonts:
        descriptor = font["/DescendantFonts"][0]["/FontDescriptor"]
        assert {"/FontFile2", "/FontFile3"} & set(descriptor)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta",):
            self.open.append(tag)
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("src", "href", "xlink:href") and value:
                self.links.append(value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_well_formed_and_needs_no_network(
    quickstart: tuple[synthetic.Tables, RunDirectory, list[str]],
) -> None:
    tables, run, _ = quickstart
    text = run.read_text("report.html")
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert page.links
    assert all(link.removeprefix("#") in page.ids for link in page.links)
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"<link|@import|<img", markup)
    assert not re.search(r"url\((?!#)", markup)
    assert markup.count("<svg") == len(CHARTS)
    assert text.count("window.vegaEmbed=") == 1
    assert "prefers-color-scheme" in text
    assert all(row["trial_id"][-8:] in text for row in tables.results)


def test_names_inside_an_svg_become_its_own() -> None:
    svg = '<svg><clipPath id="a"/><g clip-path="url(#a)"/><use xlink:href="#a"/></svg>'
    assert embed_svg(svg, "x") == '<svg><clipPath id="x-a"/><g clip-path="url(#x-a)"/><use xlink:href="#x-a"/></svg>'


def test_shapes_of_a_chart_in_a_pdf_have_no_opacity_of_their_own() -> None:
    svg = (
        '<g opacity="0.5"><path fill="#fff" opacity="1"/><line stroke="red" opacity="0.55"/>'
        '<path fill="red" fill-opacity="0"/></g>'
    )
    assert flat(svg) == (
        '<g opacity="0.5"><path fill="#fff"/><line stroke="red" fill-opacity="0.55" stroke-opacity="0.55"/>'
        '<path fill="none"/></g>'
    )


def test_long_lines_of_code_are_continued() -> None:
    lines = wrap_code("  key: " + "x" * 50, 30)
    assert all(len(line) <= 30 for line in lines)
    assert "".join(line.strip() for line in lines) == "key: " + "x" * 50
    assert all(line.startswith("      ") for line in lines[1:])
