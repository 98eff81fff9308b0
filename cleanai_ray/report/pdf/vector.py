"""Charts as vector pages, laid over the pages of a PDF."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pypdf import PageObject, PdfReader, PdfWriter
from pypdf.generic import (
    ArrayObject,
    DecodedStreamObject,
    DictionaryObject,
    FloatObject,
    NameObject,
    StreamObject,
)

_SHAPE = re.compile(r"<(?:path|line|rect|text)\b[^>]*>")


@dataclass(frozen=True)
class Placement:
    """The place of a chart: page from 0, scale factor, and the lower left corner in points."""

    name: str
    page: int
    factor: float
    x: float
    y: float


def to_page(svg: str) -> PageObject:
    """Return a chart as a PDF page of its own size, its fonts embedded."""
    import vl_convert  # here, so that a document without charts needs none of it

    return PdfReader(io.BytesIO(vl_convert.svg_to_pdf(flat(svg)))).pages[0]


def flat(svg: str) -> str:
    """Return an SVG whose shapes carry their opacity in fill and stroke, and have no invisible fill.

    In a PDF a shape's own opacity makes it a drawing within a drawing, with three objects per shape: slow for thousands
    of trials. The opacity of its fill and stroke looks the same and needs none of them.
    """
    return _SHAPE.sub(_flatten, svg)


def _flatten(shape: re.Match[str]) -> str:
    text = shape[0].replace(' opacity="1"', "")
    if ' fill-opacity="0"' in text:
        text = re.sub(r' fill="[^"]*"', ' fill="none"', text.replace(' fill-opacity="0"', ""))
    if "-opacity=" in text:
        return text
    return re.sub(r' opacity="([0-9.]+)"', r' fill-opacity="\1" stroke-opacity="\1"', text)


def lay_over(content: bytes, charts: Mapping[str, PageObject], placements: Iterable[Placement]) -> bytes:
    """Return a PDF with charts laid over its pages; its outline and metadata stay.

    Each chart becomes a form of its own, since the coordinates of gradients belong to the stream that holds them.
    """
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(content)))
    for number, place in enumerate(placements):
        page = writer.pages[place.page]
        name = NameObject(f"/Chart{number}")
        resources = page[NameObject("/Resources")].get_object()
        assert isinstance(resources, DictionaryObject)
        forms = resources.setdefault(NameObject("/XObject"), DictionaryObject()).get_object()
        forms[name] = writer._add_object(_form(charts[place.name], writer))
        drawing = DecodedStreamObject()
        drawing.set_data(
            f"q {place.factor:.5f} 0 0 {place.factor:.5f} {place.x:.3f} {place.y:.3f} cm {name} Do Q".encode()
        )
        earlier = page[NameObject("/Contents")]
        parts = list(earlier) if isinstance(earlier, ArrayObject) else [page.raw_get("/Contents")]
        page[NameObject("/Contents")] = ArrayObject([*parts, writer._add_object(drawing)])
    merged = io.BytesIO()
    writer.write(merged)
    return merged.getvalue()


def _form(chart: PageObject, writer: PdfWriter) -> StreamObject:
    contents = chart.get_contents()
    form = DecodedStreamObject()
    form.set_data(b"" if contents is None else contents.get_data())
    form[NameObject("/Type")] = NameObject("/XObject")
    form[NameObject("/Subtype")] = NameObject("/Form")
    form[NameObject("/BBox")] = ArrayObject([FloatObject(float(value)) for value in chart.mediabox])
    form[NameObject("/Resources")] = chart[NameObject("/Resources")].clone(writer)
    if "/Group" in chart:
        form[NameObject("/Group")] = chart[NameObject("/Group")].clone(writer)
    return form.flate_encode()


def wrap_code(text: str, num_columns: int) -> list[str]:
    """Return the lines of a text; long lines continue on the next with a deeper indent."""
    lines = []
    for line in text.expandtabs(2).splitlines():
        indent = " " * min(len(line) - len(line.lstrip()) + 4, num_columns // 2)
        lines.append(line[:num_columns])
        step = num_columns - len(indent)
        lines += [indent + line[start : start + step] for start in range(num_columns, len(line), step)]
    return lines
