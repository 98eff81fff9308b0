"""The report as a PDF: reportlab sets the text, and every chart is laid over it as a vector drawing."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import dropwhile
from typing import Any
from xml.sax.saxutils import escape

from pypdf import PageObject
from reportlab.lib.enums import TA_RIGHT
from reportlab.lib.styles import ParagraphStyle
from reportlab.pdfbase import pdfmetrics
from reportlab.platypus import (
    BaseDocTemplate,
    CondPageBreak,
    Flowable,
    Frame,
    KeepTogether,
    NextPageTemplate,
    PageBreak,
    PageTemplate,
    Spacer,
)
from reportlab.platypus import Paragraph as Text
from reportlab.platypus import Table as Grid

from cleanai_ray.report import blocks
from cleanai_ray.report.pdf import style as look
from cleanai_ray.report.pdf.contents import Entry, contents_table
from cleanai_ray.report.pdf.fonts import Fonts
from cleanai_ray.report.pdf.pages import draw_cover, draw_footer, draw_header
from cleanai_ray.report.pdf.vector import Placement, lay_over, to_page, wrap_code


class _Chart(Flowable):
    """Room for a chart, which may shrink a little to fit on the page; records where the chart goes."""

    def __init__(
        self, figure: blocks.Figure, page: PageObject, placements: list[Placement], least_share: float
    ) -> None:
        super().__init__()
        self.title = figure.title
        self._name, self._placements, self._least_share = figure.name, placements, least_share
        self._size = float(page.mediabox.width), float(page.mediabox.height)
        self._largest = min(look.CHART_FACTOR, look.WIDTH / self._size[0], look.CHART_HEIGHT / self._size[1])
        self._factor = self._largest

    def wrap(self, _: float, height: float) -> tuple[float, float]:
        fitting = (height - look.GAP) / self._size[1]
        self._factor = min(self._largest, fitting) if fitting >= self._least_share * self._largest else self._largest
        self.width, self.height = self._size[0] * self._factor, self._size[1] * self._factor
        return self.width, self.height

    def draw(self) -> None:
        x, y = self.canv.absolutePosition(0, 0)
        self._placements.append(Placement(self._name, self.canv.getPageNumber() - 1, self._factor, x, y))


class _Rows(Grid):
    """A table that breaks so that no page has its last row or two alone, where it has rows enough for that."""

    def split(self, width: float, height: float) -> list[Flowable]:
        parts: list[Flowable] = super().split(width, height)
        if len(parts) != 2:  # it fits, or breaks nowhere
            return parts
        first, last = (part._nrows for part in parts)
        missing = look.LEAST_ROWS + self.repeatRows - last
        if missing <= 0 or first - missing < look.LEAST_ROWS + self.repeatRows:
            return parts
        begun, rest = super().split(width, sum(self._rowHeights[: first - missing]) + 0.01)
        return [begun, PageBreak(), rest]


class _Template(BaseDocTemplate):
    """Adds every heading to the outline, and records headings and charts for the table of contents."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.entries: list[Entry] = []

    def afterFlowable(self, flowable: Flowable) -> None:
        level, key = getattr(flowable, "outline_level", None), f"place-{len(self.entries)}"
        if level is not None:
            self._note(Entry(level, flowable.getPlainText(), self.page, key))
            self.canv.addOutlineEntry(flowable.getPlainText(), key, level=level, closed=False)
        elif isinstance(flowable, _Chart) and flowable.title:
            self._note(Entry(1, flowable.title, self.page, key))

    def _note(self, entry: Entry) -> None:
        self.canv.bookmarkPage(entry.key)
        self.entries.append(entry)


def to_pdf(document: blocks.Document) -> bytes:
    """Return a report as a PDF file, with the fonts of text and charts embedded."""
    fonts = Fonts()
    charts = {figure.name: to_page(figure.svg) for figure in _figures(document)}
    # Page numbers are known after a first pass; the contents have a page of their own, so that they move nothing.
    _, _, first = _build(document, fonts, charts)
    content, placements, _ = _build(document, fonts, charts, first.page, first.entries)
    return lay_over(content, charts, placements)


def _figures(document: blocks.Document) -> list[blocks.Figure]:
    everything = [*document.cover, *(block for chapter in document.chapters for block in chapter.blocks)]
    return [block for block in everything if isinstance(block, blocks.Figure)]


def _build(
    document: blocks.Document,
    fonts: Fonts,
    charts: dict[str, PageObject],
    total: int = 0,
    entries: Sequence[Entry] = (),
) -> tuple[bytes, list[Placement], _Template]:
    buffer, placements = io.BytesIO(), list[Placement]()
    template = _Template(
        buffer,
        pagesize=(look.PAGE_WIDTH, look.PAGE_HEIGHT),
        title=document.heading,
        author="CleanAI-Ray",
        initialFontName=fonts.regular,
        subject=document.question or "Structured pruning of a neural network",
        creator=f"CleanAI-Ray {document.version}".strip(),
    )
    cover = Frame(look.MARGIN, look.BOTTOM, look.WIDTH, look.PAGE_HEIGHT - look.BOTTOM - look.COVER_TOP, 0, 0, 0, 0)
    body = Frame(look.MARGIN, look.BOTTOM, look.WIDTH, look.PAGE_HEIGHT - look.BOTTOM - look.TOP, 0, 0, 0, 0)
    footer = partial(draw_footer, document=document, fonts=fonts, total=total)
    template.addPageTemplates(
        [
            PageTemplate("cover", [cover], onPage=partial(draw_cover, fonts=fonts, footer=footer)),
            PageTemplate("body", [body], onPage=partial(draw_header, document=document, fonts=fonts, footer=footer)),
        ]
    )
    template.build(_Setter(fonts, charts, placements).story(document, entries))
    return buffer.getvalue(), placements, template


def _first_trials(block: blocks.TrialTable) -> blocks.Table:
    """Return the first of the trials, and the one that is tinted wherever it stands."""
    table = block.printed
    kept = [*range(look.MOST_TRIALS), *(place for place in table.highlighted if place >= look.MOST_TRIALS)]
    rows = tuple(table.rows[place] for place in kept if place < len(table.rows))
    return replace(table, rows=rows, highlighted=tuple(kept.index(place) for place in table.highlighted))


class _Setter:
    """Turns blocks into reportlab's flowables."""

    def __init__(self, fonts: Fonts, charts: dict[str, PageObject], placements: list[Placement]) -> None:
        self._fonts, self._charts, self._placements = fonts, charts, placements

    def story(self, document: blocks.Document, entries: Sequence[Entry]) -> list[Flowable]:
        """Return the whole report, with the table of contents that an earlier pass found."""
        story: list[Flowable] = [self._text(document.title, look.TITLE)]
        story[0].outline_level = 0
        if document.question:
            story += [Spacer(0, 7), self._text(document.question, look.QUESTION)]
        story.append(Spacer(0, 13))
        for block in document.cover:
            story += self.flowables(block, least_share=0.3)
        contents = self._text("Contents", look.CONTENTS)
        after_cover = list(dropwhile(lambda entry: entry.level > 0, entries[1:]))
        story += [NextPageTemplate("body"), PageBreak(), contents, *contents_table(after_cover, self._fonts)]
        for chapter in document.chapters:
            room = look.ROOM_FOR_PAGE if chapter.starts_page else look.ROOM_FOR_CHAPTER
            story.append(PageBreak() if chapter is document.chapters[0] else CondPageBreak(room))
            title = self._text(chapter.title, look.CHAPTER)
            title.outline_level = 0
            story += [title]
            for block in chapter.blocks:
                story += self.flowables(block)
        return story

    def flowables(self, block: blocks.Block, *, least_share: float = 0.82) -> list[Flowable]:
        """Return one block; a chart may shrink to `least_share` of its size to fit where it stands."""
        if isinstance(block, blocks.Heading):
            text = self._text(block.text, look.HEADING)
            text.outline_level = 1
            return [CondPageBreak(look.ROOM_AFTER_HEADING), text]
        if isinstance(block, blocks.Paragraph):
            return [self._text(block.text, look.NOTE if block.is_small else look.BODY)]
        if isinstance(block, blocks.Callout):
            return [self._callout(block), Spacer(0, 9)]
        if isinstance(block, blocks.KeyNumbers):
            return [self._numbers(block), Spacer(0, 10)]
        if isinstance(block, blocks.Table):
            return [self._table(block), Spacer(0, 8)]
        if isinstance(block, blocks.TrialTable):
            return self.flowables(_first_trials(block))
        if isinstance(block, blocks.Figure):
            return [
                _Chart(block, self._charts[block.name], self._placements, least_share),
                Spacer(0, look.GAP - 1),
            ]
        if isinstance(block, blocks.Code):
            return [self._code(block), Spacer(0, 6)]
        return self._risk(block)

    def _text(self, text: str, style: look.TextStyle) -> Text:
        own = ParagraphStyle(
            "text",
            fontName=self._fonts.bold if style.bold else self._fonts.regular,
            fontSize=style.size,
            leading=1.34 * style.size,
            textColor=style.colour,
            spaceBefore=style.before,
            spaceAfter=style.after,
            leftIndent=style.indent,
            alignment=TA_RIGHT if style.is_right else 0,
            splitLongWords=1,
        )
        return Text(escape(self._fonts.printable(text)), own)

    def _callout(self, block: blocks.Callout) -> Grid:
        colour = look.TONES[block.tone]
        content = [self._text(block.title, look.callout_title(colour)), self._text(block.text, look.CALLOUT)]
        return Grid([[content]], colWidths=[look.WIDTH], style=self._with_font(look.callout_commands(colour)))

    def _numbers(self, block: blocks.KeyNumbers) -> Grid:
        cells = [
            [
                self._text(number.label, look.NUMBER_LABEL),
                self._text(number.value, look.NUMBER),
                self._text(number.note, look.NUMBER_NOTE),
            ]
            for number in block.numbers
        ]
        return Grid([cells], colWidths=look.spread([1.0] * len(cells)), style=self._with_font(look.NUMBERS))

    def _table(self, block: blocks.Table) -> _Rows:
        size, widths = self._fit(block) if block.is_dense else (look.TABLE_SIZE, look.column_widths(block))
        rows = [[self._cell(*pair, size) for pair in zip(row, block.columns, strict=True)] for row in block.rows]
        if block.has_header:
            rows.insert(0, [self._cell(column.title, column, size, bold=True) for column in block.columns])
        commands = self._with_font(look.table_commands(block))
        return _Rows(rows, colWidths=widths, repeatRows=int(block.has_header), style=commands)

    def _with_font(self, commands: look.Commands) -> look.Commands:
        """Add an embedded font, for reportlab would otherwise name one of its own that is not embedded."""
        return [("FONTNAME", (0, 0), (-1, -1), self._fonts.regular), *commands]

    def _cell(self, text: str, column: blocks.Column, size: float, *, bold: bool = False) -> Text:
        return self._text(text, look.cell(size, bold=bold, is_right=column.is_number))

    def _fit(self, block: blocks.Table) -> tuple[float, list[float]]:
        """Return the largest font size at which no cell breaks, and the widths of the columns at that size."""
        at_one = []
        for column, texts in zip(block.columns, zip(*block.rows, strict=True), strict=True):
            title = pdfmetrics.stringWidth(column.title, self._fonts.bold, 1)
            at_one.append(max(title, *(pdfmetrics.stringWidth(text, self._fonts.regular, 1) for text in texts)))
        padding = 9.0
        largest = (look.WIDTH - padding * len(at_one)) / sum(at_one)
        if largest < look.SMALLEST_DENSE:
            return look.SMALLEST_DENSE, look.column_widths(block)
        size = min(look.LARGEST_DENSE, largest)
        spare = (look.WIDTH - size * sum(at_one)) / len(at_one)
        return size, [size * width + spare for width in at_one]

    def _code(self, block: blocks.Code) -> Grid:
        lines = [self._fonts.printable(line) or " " for line in wrap_code(block.text, look.CODE_COLUMNS)]
        heights, commands = [look.CODE_LEADING] * len(lines), look.code_commands(self._fonts.mono)
        return Grid([[line] for line in lines], colWidths=[look.WIDTH], rowHeights=heights, style=commands)

    def _risk(self, block: blocks.RiskNote) -> list[Flowable]:
        colour = look.SEVERITIES[block.severity]
        tag = self._text(block.severity.upper(), look.risk_tag(colour))
        row = [tag, [self._text(_capital(block.title), look.RISK_TITLE), self._text(block.text, look.RISK)]]
        widths, commands = [look.RISK_INDENT, look.WIDTH - look.RISK_INDENT], look.risk_commands(colour)
        head = Grid([row], colWidths=widths, style=self._with_font(commands))
        lines = [self._text(f"\N{BULLET} {line}", look.RISK_DETAIL) for line in block.details]
        return [KeepTogether([head, *lines[:3]]), *lines[3:], Spacer(0, 9)]


def _capital(title: str) -> str:
    """Return a title with a capital; a name of its own, such as mIoU, stays as it is."""
    return title.capitalize() if title.islower() else title
