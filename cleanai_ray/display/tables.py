"""Tables for people: one value that a terminal prints, rich colours, and a notebook shows as HTML."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

_GAP = "  "


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One table.

    Attributes:
        columns: Headings.
        rows: Cells, one for each column.
        left: Headings whose cells are words, and aligned to the left; the others are numbers.
        title: A line above it; empty for none.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: tuple[str, ...] = ()
    title: str = ""

    @property
    def right(self) -> tuple[str, ...]:
        """Headings whose cells are aligned to the right."""
        return tuple(column for column in self.columns if column not in self.left)


@dataclass(frozen=True, repr=False)
class Summary:
    """A heading, tables and remarks. It prints as text; rich and notebooks show it in their own ways.

    Attributes:
        heading: One line.
        grids: The tables.
        notes: Sentences below them.
    """

    heading: str
    grids: tuple[Grid, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [self.heading]
        for grid in self.grids:
            table = text_table(grid.columns, grid.rows, grid.right)
            parts.append(f"{grid.title}\n{table}" if grid.title else table)
        return "\n\n".join([*parts, *(["\n".join(self.notes)] if self.notes else [])])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{escape(note)}</p>" for note in self.notes)
        return f"<p><b>{escape(self.heading)}</b></p>{''.join(map(_html, self.grids))}{notes}"

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        parts: list[RenderableType] = [Text(self.heading, style="bold")]
        for grid in self.grids:
            table = Table(title=Text(grid.title) if grid.title else None, title_justify="left", box=None)
            for column in grid.columns:
                table.add_column(Text(column), justify="right" if column in grid.right else "left")
            for row in grid.rows:
                table.add_row(*map(Text, row))
            parts += [Text(), table]
        return Group(*parts, *([Text()] if self.notes else []), *map(Text, self.notes))


class Displayed(ABC):
    """A value with a summary, which notebooks and rich show in place of the value. Its `repr` is one short line."""

    @abstractmethod
    def summary(self) -> Summary:
        """Return the value as tables."""

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    def __rich__(self) -> RenderableType:
        return self.summary().__rich__()


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[str] = ()) -> str:
    """Return a table as lines of text.

    Args:
        headings: One for each column.
        rows: Cells, one for each column.
        right: Headings whose cells are aligned to the right.
    """
    widths = [max(len(text) for text in column) for column in zip(headings, *rows, strict=True)]
    lines = []
    for row in (headings, *rows):
        cells = [
            text.rjust(width) if heading in right else text.ljust(width)
            for heading, text, width in zip(headings, row, widths, strict=True)
        ]
        lines.append(_GAP.join(cells).rstrip())
    return "\n".join(lines)


def change(before: float, after: float) -> str:
    """Return two numbers as `1,000 -> 500`."""
    return f"{before:,} -> {after:,}"


def percent(value: float, digits: int = 1) -> str:
    """Return a fraction as a percentage, with a space before the sign."""
    return f"{100 * value:.{digits}f} %"


def share(part: float, whole: float) -> str:
    """Return a part of a whole as a percentage; nothing if the whole is zero."""
    return percent(part / whole) if whole else ""


def _html(grid: Grid) -> str:
    def cells(tag: str, texts: Sequence[str]) -> str:
        sides = ("right" if column in grid.right else "left" for column in grid.columns)
        parts = zip(texts, sides, strict=True)
        return "".join(f'<{tag} style="text-align:{side}">{escape(text)}</{tag}>' for text, side in parts)

    rows = "".join(f"<tr>{cells('td', row)}</tr>" for row in grid.rows)
    title = f"<caption>{escape(grid.title)}</caption>" if grid.title else ""
    return f"<table>{title}<thead><tr>{cells('th', grid.columns)}</tr></thead><tbody>{rows}</tbody></table>"
