"""Measures, colours, looks of texts and rules of the PDF, in points on A4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

from cleanai_ray.report.blocks import Table

Commands: TypeAlias = list[tuple[Any, ...]]
"""Style commands of a reportlab table."""

MM = 72 / 25.4
PAGE_WIDTH, PAGE_HEIGHT = 210 * MM, 297 * MM
MARGIN, TOP, BOTTOM, COVER_TOP = 17 * MM, 22 * MM, 19 * MM, 34 * MM
WIDTH = PAGE_WIDTH - 2 * MARGIN

INK, MUTED, RULE, SHADE, PAPER = "#1b2733", "#5b6875", "#c3cad1", "#f4f6f8", "#ffffff"
ACCENT, TINT = "#173f5f", "#e4eff7"
TONES = {"good": "#1b7f4b", "warn": "#a86200", "bad": "#b3261e", "plain": ACCENT}
SEVERITIES = {"high": "#b3261e", "medium": "#a86200", "info": "#4a6274"}

CHART_FACTOR, CHART_HEIGHT = 0.755, PAGE_HEIGHT - TOP - BOTTOM - 42
"""The largest factor and height of a chart; at that factor a full-width chart is as wide as the text."""

GAP, ROOM_AFTER_HEADING, ROOM_FOR_CHAPTER = 13, 90, 240
"""Space below a chart, and the room that a heading or a chapter needs on a page to begin there."""

ROOM_FOR_PAGE = 0.7 * (PAGE_HEIGHT - TOP - BOTTOM)
"""The room that a chapter which starts a page needs on the last one; with less, it begins a new one."""

LEAST_ROWS = 3
"""Rows of a table that go over to the next page, at least: one or two alone look like a mistake."""
MOST_TRIALS = 30
"""The most trials that are printed; the page and results.parquet have them all."""

CODE_COLUMNS, CODE_SIZE, CODE_LEADING = 104, 7.3, 9.0
TABLE_SIZE, LARGEST_DENSE, SMALLEST_DENSE = 7.5, 7.2, 5.6


@dataclass(frozen=True, kw_only=True)
class TextStyle:
    """The look of a text; sizes, indents and spaces in points.

    Attributes:
        size: Font size.
        bold: True for the bold font.
        colour: Colour of the letters.
        is_right: True if lines are set flush right.
        indent: Room at the left of every line.
        before: Room above the text.
        after: Room below it.
    """

    size: float
    bold: bool = False
    colour: str = INK
    is_right: bool = False
    indent: float = 0
    before: float = 0
    after: float = 0


TITLE = TextStyle(size=25, bold=True, colour=ACCENT)
QUESTION = TextStyle(size=11.5, colour=MUTED)
CONTENTS = TextStyle(size=16, bold=True, colour=ACCENT, after=3)
CHAPTER = TextStyle(size=16, bold=True, colour=ACCENT, before=18, after=9)
HEADING = TextStyle(size=11, bold=True, before=10, after=4)
BODY, NOTE = TextStyle(size=9.2, after=6), TextStyle(size=7.8, colour=MUTED, after=6)
CALLOUT = TextStyle(size=10.3)
NUMBER_LABEL, NUMBER = TextStyle(size=7.6, colour=MUTED), TextStyle(size=15, bold=True)
NUMBER_NOTE = TextStyle(size=7, colour=MUTED)
RISK_INDENT = 20 * MM
RISK_TITLE, RISK = TextStyle(size=8, bold=True, colour=MUTED), TextStyle(size=9.2)
RISK_DETAIL = TextStyle(size=7.6, colour=MUTED, indent=RISK_INDENT + 6, before=2)


def callout_title(colour: str) -> TextStyle:
    """Return the look of a callout's title in a colour."""
    return TextStyle(size=11.5, bold=True, colour=colour, after=3)


def risk_tag(colour: str) -> TextStyle:
    """Return the look of a risk's severity in a colour."""
    return TextStyle(size=7.6, bold=True, colour=colour)


def cell(size: float, *, bold: bool = False, is_right: bool = False) -> TextStyle:
    """Return the look of a cell of a table."""
    return TextStyle(size=size, bold=bold, is_right=is_right)


_ALL = (0, 0), (-1, -1)

NUMBERS: Commands = [
    ("VALIGN", *_ALL, "TOP"),
    ("LEFTPADDING", *_ALL, 8),
    ("RIGHTPADDING", *_ALL, 2),
    ("LINEBEFORE", *_ALL, 0.8, RULE),
]


def callout_commands(colour: str) -> Commands:
    """Return the style of a callout with a coloured bar."""
    bar = ("LINEBEFORE", (0, 0), (0, -1), 3, colour)
    return [("BACKGROUND", *_ALL, SHADE), bar, *_padding(left=11, top=8, bottom=9)]


def risk_commands(colour: str) -> Commands:
    """Return the style of a risk with a coloured bar."""
    return [
        ("VALIGN", *_ALL, "TOP"),
        ("LINEBEFORE", (0, 0), (0, -1), 3, colour),
        *_padding(left=9, top=1.5, bottom=1.5),
    ]


def code_commands(font: str) -> Commands:
    """Return the style of a text in a fixed-width font, one row per line."""
    colours: Commands = [("TEXTCOLOR", *_ALL, INK), ("BACKGROUND", *_ALL, SHADE)]
    return [("FONT", *_ALL, font, CODE_SIZE), *colours, *_padding(left=7, top=1, bottom=1)]


def table_commands(table: Table) -> Commands:
    """Return the style of a table."""
    commands: Commands = [("VALIGN", *_ALL, "TOP"), ("RIGHTPADDING", *_ALL, 3), ("LINEBELOW", *_ALL, 0.25, RULE)]
    commands += _padding(left=3, top=2.2, bottom=2.6)
    if table.has_header:
        commands.append(("LINEBELOW", (0, 0), (-1, 0), 0.9, INK))
    for position, (left, right) in enumerate(pairwise(table.columns), start=1):
        if left.is_number and not right.is_number:
            commands.append(("LEFTPADDING", (position, 0), (position, -1), 6))
    first = int(table.has_header)
    return [*commands, *(("BACKGROUND", (0, row + first), (-1, row + first), TINT) for row in table.highlighted)]


def column_widths(table: Table) -> list[float]:
    """Return the widths of a table's columns."""
    return spread([column.width for column in table.columns])


def spread(shares: Sequence[float]) -> list[float]:
    """Return widths in these proportions that together fill a line."""
    total = sum(shares)
    return [WIDTH * share / total for share in shares]


def _padding(*, left: float, top: float, bottom: float) -> Commands:
    return [("LEFTPADDING", *_ALL, left), ("TOPPADDING", *_ALL, top), ("BOTTOMPADDING", *_ALL, bottom)]
