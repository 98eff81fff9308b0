"""The parts of a report, the same for PDF and HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from cleanai_ray.analysis.risks.base import Severity

Tone = Literal["good", "warn", "bad", "plain"]


@dataclass(frozen=True)
class Heading:
    """A heading inside a chapter."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Running text; `is_small` for notes."""

    text: str
    is_small: bool = False


@dataclass(frozen=True)
class Callout:
    """A sentence that must not be overlooked."""

    title: str
    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class KeyNumber:
    """One number, with its name and what to compare it with."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class KeyNumbers:
    """Numbers side by side."""

    numbers: tuple[KeyNumber, ...]


@dataclass(frozen=True)
class Column:
    """A column of a table: its title and its share of the width; numbers are set flush right."""

    title: str
    width: float
    is_number: bool = False


@dataclass(frozen=True)
class Table:
    """A table that repeats its header on every page.

    Attributes:
        columns: Its columns.
        rows: A text for every column.
        highlighted: Rows that are tinted, from 0.
        has_header: True if the titles of the columns are shown.
        is_dense: True if the text may shrink so that no cell breaks.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    highlighted: tuple[int, ...] = ()
    has_header: bool = True
    is_dense: bool = False


@dataclass(frozen=True)
class DataColumn:
    """A column of a table that a page sorts and filters.

    Attributes:
        title: Its title, short.
        kind: Kind of its cells; a range is a pair of numbers.
        digits: Digits after the point.
        hint: Its content, in a sentence.
        filter: How readers can filter by it: choose one value, or set the least or the most; empty: not at all.
    """

    title: str
    kind: Literal["text", "number", "range"] = "text"
    digits: int = 0
    hint: str = ""
    filter: Literal["", "choice", "least", "most"] = ""


@dataclass(frozen=True)
class TrialTable:
    """The trials: as a table for print, and with every column and row for a page.

    Attributes:
        printed: The table that print shows.
        columns: The columns of a page.
        rows: A value for every column; None where there is none.
        highlighted: The row that is tinted, from 0.
    """

    printed: Table
    columns: tuple[DataColumn, ...]
    rows: tuple[tuple[str | float | tuple[float, float] | None, ...], ...]
    highlighted: int | None = None


@dataclass(frozen=True)
class Figure:
    """A chart as SVG and, for a page that draws it itself, as a Vega-Lite specification."""

    name: str
    svg: str
    specification: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The chart's title; empty where it has none."""
        title = self.specification.get("title")
        return str(title.get("text") or "") if isinstance(title, Mapping) else str(title or "")


@dataclass(frozen=True)
class Code:
    """Text in a fixed-width font, as it is."""

    text: str


@dataclass(frozen=True)
class RiskNote:
    """A risk with its severity and the lines below it."""

    severity: Severity
    title: str
    text: str
    details: tuple[str, ...] = ()


Block: TypeAlias = Heading | Paragraph | Callout | KeyNumbers | Table | TrialTable | Figure | Code | RiskNote


@dataclass(frozen=True)
class Chapter:
    """A chapter of the report, with an entry in its outline.

    Attributes:
        title: Its title.
        blocks: What it consists of.
        starts_page: True if it begins a new page unless the last one is nearly empty.
    """

    title: str
    blocks: tuple[Block, ...]
    starts_page: bool = False


@dataclass(frozen=True)
class Document:
    """A report.

    Attributes:
        title: The study's name.
        question: The question that the study asks; may be empty.
        version: Version of CleanAI-Ray that ran it; may be empty.
        cover: The blocks of the first page, below title and question.
        chapters: Everything after the cover.
    """

    title: str
    question: str
    version: str
    cover: tuple[Block, ...]
    chapters: tuple[Chapter, ...]

    @property
    def heading(self) -> str:
        """The title in words."""
        return f"Pruning study {self.title}"
