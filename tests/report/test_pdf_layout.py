"""Nothing in a PDF runs over a margin, over another text or from one column of a table into the next."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path

import numpy as np
import pypdfium2
import pypdfium2.raw
import pytest
from numpy.typing import NDArray
from report import synthetic

from cleanai_ray.analysis.findings import find
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.charts import style
from cleanai_ray.registry import CHARTS
from cleanai_ray.report.blocks import Chapter, Column, Document, Figure, Table
from cleanai_ray.report.pdf import style as look
from cleanai_ray.report.pdf.document import to_pdf
from cleanai_ray.report.sections import write_document

pytestmark = pytest.mark.slow

SLACK = 1.0
"""Points by which a glyph may reach over the width that its font gives it."""


class Letters:
    """The printed characters of a page with their boxes in points, from the lower left corner; no blanks."""

    def __init__(self, page: pypdfium2.PdfPage) -> None:
        text = page.get_textpage()
        found = []
        for place in range(text.count_chars()):
            character = text.get_text_range(place, 1)
            upright = math.cos(pypdfium2.raw.FPDFText_GetCharAngle(text.raw, place)) > 0.999
            if character.strip():
                found.append((character, upright, *text.get_charbox(place)))
        self.text = [letter[0] for letter in found]
        self.is_upright = np.array([letter[1] for letter in found], dtype=bool)
        self.boxes: NDArray[np.float64] = np.array([letter[2:] for letter in found], dtype=np.float64).reshape(-1, 4)

    def outside(self) -> list[str]:
        """The characters beyond the margins of the text, or below or above the lines at foot and head."""
        left, bottom, right, top = self.boxes.T
        wrong = (left < look.MARGIN - SLACK) | (right > look.PAGE_WIDTH - look.MARGIN + SLACK)
        wrong |= (bottom < 9 * look.MM) | (top > look.PAGE_HEIGHT - 7 * look.MM)
        return [self.text[place] for place in np.flatnonzero(wrong)]

    def overprinted(self) -> list[str]:
        """The neighbourhoods of upright characters of which another one hides a third or more."""
        places = np.flatnonzero(self.is_upright)
        # The letters of a ligature, which stand one after the other, share one box.
        alike = (np.abs(np.diff(self.boxes[places], axis=0)) < 0.01).all(axis=1)
        ligatures = set(np.flatnonzero((np.diff(places) == 1) & alike).tolist())
        parts = (hidden(self.boxes[places], begin, begin + 200) for begin in range(0, len(places), 200))
        found = itertools.chain.from_iterable(parts)
        pairs = [(one, other) for one, other in found if not (other == one + 1 and one in ligatures)]
        around = [range(max(0, places[one] - 6), places[one] + 7) for one, _ in pairs]
        texts = ["".join(self.text[place] for place in near if place < len(self.text)) for near in around]
        return [f"{text} ({self.text[places[other]]})" for text, (_, other) in zip(texts, pairs, strict=True)]


def hidden(boxes: NDArray[np.float64], begin: int, end: int) -> list[tuple[int, int]]:
    """Pairs of boxes, of which the first is from begin to end, and that share a third of the smaller one or more.

    Only boxes of the same height on the page are compared: the square of all boxes would take gigabytes.
    """
    part = boxes[begin:end]
    near = np.flatnonzero((boxes[:, 1] < part[:, 3].max()) & (boxes[:, 3] > part[:, 1].min()))
    left, bottom, right, top = boxes[near].T
    wide = np.minimum(part[:, 2, None], right) - np.maximum(part[:, 0, None], left)
    high = np.minimum(part[:, 3, None], top) - np.maximum(part[:, 1, None], bottom)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    smaller = np.minimum(area[begin:end, None], area[near])
    shared = np.clip(wide, 0, None) * np.clip(high, 0, None) / np.maximum(smaller, 0.1)
    first, second = np.nonzero(shared > 1 / 3)
    pairs = zip((first + begin).tolist(), near[second].tolist(), strict=True)
    return [(one, other) for one, other in pairs if one < other]


def faults_of(content: bytes) -> list[str]:
    document = pypdfium2.PdfDocument(content)
    faults = []
    for number, page in enumerate(document, start=1):
        letters = Letters(page)
        assert letters.text, f"page {number} is empty"
        faults += [f"page {number}, outside: {text}" for text in letters.outside()]
        faults += [f"page {number}, overprinted: {text}" for text in letters.overprinted()]
    return faults


def small() -> synthetic.Tables:
    return synthetic.make(finetune_epochs=2)


def one_trial() -> synthetic.Tables:
    return synthetic.make(methods=("wanda",), ratios=(0.3,), modes=("local",))


def all_failed() -> synthetic.Tables:
    error = "RuntimeError: sizes of tensors must match except in dimension 1, expected 64, got 48 for tensor number 1"
    return synthetic.fail(synthetic.make(methods=("wanda", "random")), error=error + " " + "x" * 300)


def long_names() -> synthetic.Tables:
    """200 trials whose methods and ids have names without a place to break."""
    names = tuple(f"an_importance_method_of_someone_elses_with_the_number_{number}" for number in range(9))
    tables = synthetic.make(methods=(*names, "random"), ratios=(0.1, 0.2, 0.3, 0.4, 0.5), seeds=(0, 1))
    assert len(tables.results) == 200
    tables.study["name"] = "a-study-with-a-name-that-goes-on-and-on-" + "and-on-" * 12
    tables.environment["command"] = "cleanai run " + "very/long/path/" * 20 + "study.yaml"
    return tables


@pytest.mark.parametrize("make", [small, one_trial, all_failed, long_names], ids=lambda make: make.__name__)
def test_no_text_leaves_its_place(make: object, tmp_path: Path) -> None:
    assert callable(make)
    study = StudyFrames.load(make().write(tmp_path))
    charts = {} if make in (one_trial, all_failed) else {name: CHARTS.get(name)(study) for name in CHARTS.names()}
    figures = {name: Figure(name, style.to_svg(chart)) for name, chart in charts.items() if chart is not None}
    assert faults_of(to_pdf(write_document(study, find(study), figures))) == []


@pytest.mark.parametrize("is_dense", [False, True])
def test_cells_stay_in_their_columns(is_dense: bool) -> None:
    """Every cell is full of one letter of its column's own, so that where a letter stands tells if it strayed."""
    letters = "abcdefgh"
    words = {letter: f"{letter * 37} {letter * 5} {letter}" for letter in letters}
    columns = tuple(Column(letter.upper(), 0.05 + 0.02 * place, place % 2 == 1) for place, letter in enumerate(letters))
    rows = tuple(tuple(words[letter] for letter in letters) for _ in range(40))
    document = Document("t", "", "", (), (Chapter("s", (Table(columns, rows, is_dense=is_dense),)),))
    checked = 0
    for page in list(pypdfium2.PdfDocument(to_pdf(document)))[1:]:
        found = Letters(page)
        middle = {letter: [] for letter in letters}
        for text, (left, bottom, right, top) in zip(found.text, found.boxes, strict=True):
            if text in letters and bottom > look.BOTTOM and top < look.PAGE_HEIGHT - look.TOP:
                middle[text].append((left, right))
        if not all(len(places) > 100 for places in middle.values()):
            continue
        checked += 1
        for before, after in itertools.pairwise(letters):
            assert max(right for _, right in middle[before]) < min(left for left, _ in middle[after])
    assert checked


@pytest.mark.parametrize("has_header", [True, False])
def test_a_table_leaves_no_row_or_two_to_a_page(has_header: bool) -> None:
    """Of the lengths tried, some are a row or two more than a page holds."""
    longest = 0
    for count in range(30, 80):
        rows = tuple((f"row{number}.",) for number in range(count))
        table = Table((Column("name", 1.0, False),), rows, has_header=has_header)
        document = Document("t", "", "", (), (Chapter("s", (table,)),))
        pages = [page.get_textpage().get_text_range() for page in list(pypdfium2.PdfDocument(to_pdf(document)))[1:]]
        told = [[int(number) for number in re.findall(r"row(\d+)\.", page)] for page in pages]
        parts = [numbers for numbers in told if numbers]
        assert list(itertools.chain.from_iterable(parts)) == list(range(count))
        assert min(len(part) for part in parts) >= look.LEAST_ROWS
        longest = max(longest, len(parts))
    assert longest == 2


def test_the_check_finds_text_over_text_and_over_the_margin() -> None:
    from reportlab.pdfgen.canvas import Canvas

    canvas = Canvas("", pagesize=(look.PAGE_WIDTH, look.PAGE_HEIGHT))
    for line in range(10):
        canvas.drawString(look.MARGIN, 400 - 12 * line, "a line of text that is long enough")
    canvas.drawString(look.MARGIN + 2, 400, "another")
    canvas.drawString(look.PAGE_WIDTH - look.MARGIN - 10, 200, "beyond")
    faults = faults_of(canvas.getpdfdata())
    assert {fault.split(":")[0] for fault in faults} == {"page 1, outside", "page 1, overprinted"}
