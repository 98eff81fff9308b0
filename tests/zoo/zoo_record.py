"""The findings that a document records in its table, so that a table can be extended without trying all again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zoo_reference import OTHER, SAME, UNKNOWN
from zoo_table import BEGIN, END, FULL, HEADINGS


def _reference(cell: str) -> dict[str, Any]:
    share, _, meaning = cell.rpartition(", ")
    return {"reference": share, "meaning": meaning} if meaning in (SAME, OTHER, UNKNOWN) else {"reference": cell}


_READERS: Mapping[str, Callable[[str], dict[str, Any]]] = {
    "input": lambda cell: {"input": [int(size) for size in cell.split(" x ")]},
    HEADINGS["outcome"]: lambda cell: {"outcome": cell},
    "groups": lambda cell: {"groups": int(cell)},
    "MACs left": lambda cell: {"macs": float(cell)},
    "largest difference": lambda cell: {"error": float(cell)},
    "loaded": lambda cell: {"loads": cell},
    HEADINGS["half"]: lambda cell: {"half": cell},
    "repair": lambda cell: {"repair": cell},
    "ONNX": lambda cell: {"onnx": cell},
    "seconds": lambda cell: {"seconds": float(cell)},
    "torch-pruning": _reference,
    "layers that stay": lambda cell: {"remark": cell},
}
"""Findings by the heading of the column that holds them; an empty cell holds none."""


def read_table(document: Path) -> dict[str, dict[str, Any]]:
    """Return the findings of the table between the two marks of a document, by name."""
    table = document.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table if line.startswith("| ")]
    found: dict[str, dict[str, Any]] = {}
    for row in rows[1:]:
        each = found.setdefault(row[0], {})
        for heading, cell in zip(rows[0], row, strict=True):
            if cell and heading in _READERS:
                each |= _READERS[heading](cell)
    for line in table:
        name, told, sentence = line.removeprefix("- ").partition(": ")
        if line.startswith("- ") and told and name in found:
            part, _, rest = sentence.partition(": ")
            found[name][f"{FULL[part]}_told" if part in FULL else "full"] = rest if part in FULL else sentence
    return found
