"""The table of contents of the PDF: chapters, headings and charts, each a link to its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from reportlab.lib.enums import TA_RIGHT
from reportlab.lib.styles import ParagraphStyle
from reportlab.platypus import Flowable
from reportlab.platypus import Paragraph as Text
from reportlab.platypus import Table as Grid

from cleanai_ray.report.pdf import style as look
from cleanai_ray.report.pdf.fonts import Fonts

MOST_ENTRIES = 48
"""Lines that fit on the one page that the contents have."""


@dataclass(frozen=True)
class Entry:
    """A place in the report.

    Attributes:
        level: 0: a chapter; 1: a heading or a chart in it.
        text: Its title.
        page: Its page, from 1.
        key: Name of the place, which a link leads to.
    """

    level: int
    text: str
    page: int
    key: str


def contents_table(entries: Sequence[Entry], fonts: Fonts) -> list[Flowable]:
    """Return the table of contents, one page at the most: only the chapters where all entries would not fit.

    Args:
        entries: The places, in the order of the report.
        fonts: The report's fonts.
    """
    if len(entries) > MOST_ENTRIES:
        entries = [entry for entry in entries if entry.level == 0][:MOST_ENTRIES]
    if not entries:
        return []
    rows = [[_line(entry, entry.text, fonts), _line(entry, str(entry.page), fonts, right=True)] for entry in entries]
    number = 14 * look.MM
    commands: look.Commands = [
        ("FONTNAME", (0, 0), (-1, -1), fonts.regular),
        ("LEFTPADDING", (0, 0), (-1, -1), 0),
        ("RIGHTPADDING", (0, 0), (-1, -1), 0),
        ("TOPPADDING", (0, 0), (-1, -1), 0.5),
        ("BOTTOMPADDING", (0, 0), (-1, -1), 0.5),
    ]
    commands += [("TOPPADDING", (0, row), (-1, row), 7) for row, entry in enumerate(entries) if entry.level == 0]
    return [Grid(rows, colWidths=[look.WIDTH - number, number], style=commands)]


def _line(entry: Entry, text: str, fonts: Fonts, *, right: bool = False) -> Text:
    is_chapter = entry.level == 0
    style = ParagraphStyle(
        "contents",
        fontName=fonts.bold if is_chapter else fonts.regular,
        fontSize=9.2 if is_chapter else 8.4,
        leading=12.2 if is_chapter else 11.2,
        textColor=look.INK if is_chapter else look.MUTED,
        leftIndent=0 if is_chapter or right else 10,
        alignment=TA_RIGHT if right else 0,
    )
    width = look.WIDTH - 30 * look.MM
    printed = fonts.clipped(fonts.printable(text), style.fontSize, width)
    return Text(f'<a href="#{entry.key}">{escape(printed)}</a>', style)
