"""The band, header and footer of the PDF's pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reportlab.pdfgen.canvas import Canvas

from cleanai_ray.report import blocks
from cleanai_ray.report.pdf import style as look
from cleanai_ray.report.pdf.fonts import Fonts


def draw_cover(canvas: Canvas, _: Any, *, fonts: Fonts, footer: Callable[[Canvas], None]) -> None:
    """Draw the band of the first page."""
    canvas.setFillColor(look.ACCENT)
    canvas.rect(0, look.PAGE_HEIGHT - 20 * look.MM, look.PAGE_WIDTH, 20 * look.MM, stroke=0, fill=1)
    canvas.setFillColor(look.PAPER)
    canvas.setFont(fonts.bold, 13)
    canvas.drawString(look.MARGIN, look.PAGE_HEIGHT - 12.5 * look.MM, "CleanAI-Ray")
    canvas.setFont(fonts.regular, 9)
    canvas.drawRightString(look.PAGE_WIDTH - look.MARGIN, look.PAGE_HEIGHT - 12.5 * look.MM, "Pruning study report")
    footer(canvas)


def draw_header(
    canvas: Canvas, _: Any, *, document: blocks.Document, fonts: Fonts, footer: Callable[[Canvas], None]
) -> None:
    """Draw the header of a page: the title of the report."""
    canvas.setFont(fonts.regular, 7.5)
    canvas.setFillColor(look.MUTED)
    heading = fonts.clipped(document.heading, 7.5, 0.8 * look.WIDTH)
    canvas.drawString(look.MARGIN, look.PAGE_HEIGHT - 14 * look.MM, heading)
    canvas.drawRightString(look.PAGE_WIDTH - look.MARGIN, look.PAGE_HEIGHT - 14 * look.MM, "CleanAI-Ray")
    canvas.setStrokeColor(look.RULE)
    canvas.setLineWidth(0.5)
    canvas.line(
        look.MARGIN, look.PAGE_HEIGHT - 16 * look.MM, look.PAGE_WIDTH - look.MARGIN, look.PAGE_HEIGHT - 16 * look.MM
    )
    footer(canvas)


def draw_footer(canvas: Canvas, *, document: blocks.Document, fonts: Fonts, total: int) -> None:
    """Draw the footer of a page: version and page number."""
    canvas.setFont(fonts.regular, 7.5)
    canvas.setFillColor(look.MUTED)
    version = f"CleanAI-Ray {document.version}" if document.version else "CleanAI-Ray"
    canvas.drawString(look.MARGIN, 11 * look.MM, version)
    canvas.drawRightString(look.PAGE_WIDTH - look.MARGIN, 11 * look.MM, f"{canvas.getPageNumber()} of {total}")
