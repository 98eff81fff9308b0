"""The report as one HTML file that needs nothing else: style, scripts, charts and trials are inside.

Every chart and the table of trials are in it twice: as they are printed, for readers without scripts and for paper, and
as data that the page draws itself, so that they respond to the pointer and follow the theme. The templates are in the
folder `page`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from cleanai_ray.charts import style
from cleanai_ray.report import blocks

_DIGITS = 7
"""Significant digits of the numbers in the page's data."""


def to_html(document: blocks.Document) -> str:
    """Return a report as one HTML page."""
    everything = [*document.cover, *(block for chapter in document.chapters for block in chapter.blocks)]
    charts = [block for block in everything if isinstance(block, blocks.Figure) and block.specification]
    return (
        _templates()
        .get_template("report.html")
        .render(
            document=document,
            style=_read("page.css"),
            data=_data(charts, [block for block in everything if isinstance(block, blocks.TrialTable)]),
            library=Markup(style.javascript().replace("</script", r"<\/script")) if charts else "",
            script=_read("page.js"),
        )
    )


@cache
def _templates() -> Environment:
    templates = Environment(
        loader=PackageLoader("cleanai_ray.report.html", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["kind"] = lambda block: type(block).__name__
    templates.filters["embedded"] = lambda figure: Markup(embed_svg(figure.svg, figure.name))
    return templates


def _read(name: str) -> Markup:
    """Return a file of the page, to be written into it unescaped."""
    return Markup((resources.files("cleanai_ray.report.html") / "page" / name).read_text(encoding="utf-8").strip())


def _data(charts: Sequence[blocks.Figure], tables: Sequence[blocks.TrialTable]) -> dict[str, Markup]:
    """Return the data that the page's script draws charts and trials from, by the id of its element."""
    data = {f"chart-{chart.name}": _json(chart.specification) for chart in charts}
    for table in tables:
        columns = [asdict(column) for column in table.columns]
        data["trials"] = _json({"columns": columns, "rows": table.rows, "highlighted": table.highlighted})
    return data | ({"dark-colours": _json(style.DARK)} if charts else {})


def _json(value: Any) -> Markup:
    """Return a value as JSON; `<` is written so that no text in it can end the element that holds it."""
    text = json.dumps(_rounded(value), separators=(",", ":"), ensure_ascii=False)
    return Markup(text.replace("<", "\\u003c"))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def embed_svg(svg: str, name: str) -> str:
    """Return an SVG that can share a page with others: every id in it, and every reference to one, gets a prefix.

    Args:
        svg: The SVG.
        name: The prefix, different for every SVG of the page.
    """
    own = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    own = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", own)
    own = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', own)
    return own[own.index("<svg") :]
