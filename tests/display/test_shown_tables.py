"""Tables as text, as HTML and by rich."""

from __future__ import annotations

import io
from html.parser import HTMLParser

import pytest
from rich.console import Console

from cleanai_ray.display.tables import Displayed, Grid, Summary, change, percent, share, text_table

GRID = Grid(columns=("layer", "MACs"), rows=(("conv1", "1,000"), ("a<b>&c", "20")), left=("layer",), title="Layers")
SUMMARY = Summary("Net & more", (GRID,), ("a [note] < b",))


class Cells(HTMLParser):
    """The texts of an HTML document, by the tag that they stand in, and the tags that were not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1], data))


def test_numbers_are_aligned_to_the_right_and_words_to_the_left() -> None:
    assert text_table(("layer", "MACs"), GRID.rows, ("MACs",)) == "layer    MACs\nconv1   1,000\na<b>&c     20"
    assert text_table(("a", "b"), ()) == "a  b"


def test_a_summary_prints_as_its_text() -> None:
    assert str(SUMMARY) == repr(SUMMARY)
    assert str(SUMMARY).split("\n\n") == [
        "Net & more",
        "Layers\nlayer    MACs\nconv1   1,000\na<b>&c     20",
        "a [note] < b",
    ]


def test_html_shows_every_text_as_it_is() -> None:
    cells = Cells(SUMMARY._repr_html_())
    assert cells.open == []
    assert [text for tag, text in cells.texts if tag == "th"] == ["layer", "MACs"]
    assert [text for tag, text in cells.texts if tag == "td"] == ["conv1", "1,000", "a<b>&c", "20"]
    assert {text for tag, text in cells.texts if tag in ("b", "p", "caption")} == {
        "Net & more",
        "a [note] < b",
        "Layers",
    }


def test_rich_shows_every_text_as_it_is_brackets_included() -> None:
    file = io.StringIO()
    Console(file=file, width=80).print(SUMMARY)
    for text in ("Net & more", "Layers", "layer", "conv1", "1,000", "a<b>&c", "a [note] < b"):
        assert text in file.getvalue()


def test_a_displayed_value_shows_its_summary() -> None:
    class Shown(Displayed):
        def summary(self) -> Summary:
            return SUMMARY

    assert Shown()._repr_html_() == SUMMARY._repr_html_()
    file = io.StringIO()
    Console(file=file, width=80).print(Shown())
    assert "conv1" in file.getvalue()


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (change(12000, 500), "12,000 -> 500"),
        (percent(0.12345, 2), "12.35 %"),
        (share(1, 4), "25.0 %"),
        (share(1, 0), ""),
    ],
)
def test_numbers_in_words(found: str, expected: str) -> None:
    assert found == expected
