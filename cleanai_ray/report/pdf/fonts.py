"""The fonts of a PDF, registered with reportlab."""

from __future__ import annotations

from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont

from cleanai_ray.report.pdf.font_files import find_fonts


class Fonts:
    """The names of the registered fonts, and the characters that they have."""

    def __init__(self) -> None:
        files = find_fonts()
        self.regular, self.bold, self.mono = "Report", "Report-Bold", "Report"
        regular = TTFont(self.regular, files.regular)
        pdfmetrics.registerFont(regular)
        pdfmetrics.registerFont(TTFont(self.bold, files.bold))
        if files.mono is not None:
            self.mono = "Report-Mono"
            pdfmetrics.registerFont(TTFont(self.mono, files.mono))
        self._glyphs = regular.face.charToGlyph

    def printable(self, text: str) -> str:
        """Return a text with a question mark for every character that the font lacks."""
        return "".join(letter if letter in "\n\t" or ord(letter) in self._glyphs else "?" for letter in text)

    def clipped(self, text: str, size: float, width: float) -> str:
        """Return a printable text, cut with an ellipsis to at most `width` points at a size."""
        text = self.printable(text)
        if pdfmetrics.stringWidth(text, self.regular, size) <= width:
            return text
        while text and pdfmetrics.stringWidth(f"{text}\N{HORIZONTAL ELLIPSIS}", self.regular, size) > width:
            text = text[:-1]
        return f"{text}\N{HORIZONTAL ELLIPSIS}"
