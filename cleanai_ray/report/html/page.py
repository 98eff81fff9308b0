"""The report as one HTML file that needs nothing else: style, scripts, charts and trials are inside.

Every chart and the table of trials stand in it twice: as they are printed, for readers without scripts and for paper,
and as data that the page draws anew, so that they answer to the pointer and follow the theme.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from html import escape
from importlib import resources
from typing import Any

from cleanai_ray.charts import style
from cleanai_ray.report import blocks

_PAGE = resources.files("cleanai_ray.report.html") / "page"

_DIGITS = 7
"""Significant digits of the numbers that a page is given."""


def to_html(document: blocks.Document) -> str:
    """Return a report as one HTML page."""
    title = escape(document.heading)
    anchors = [(f"section-{number}", section) for number, section in enumerate(document.chapters, start=1)]
    links = "".join(f'<li><a href="#{anchor}">{escape(section.title)}</a></li>' for anchor, section in anchors)
    question = f'<p class="muted">{escape(document.question)}</p>' if document.question else ""
    version = f"CleanAI-Ray {escape(document.version)}".strip()
    body = [
        '<header class="top"><div class="bar"><span class="muted">'
        f"{version} \N{MIDDLE DOT} pruning study report</span>"
        '<button id="theme" type="button" title="Light or dark" hidden></button></div>'
        f"<h1>{escape(document.title)}</h1>{question}</header>",
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>',
        *(_block(block) for block in document.cover),
    ]
    for anchor, section in anchors:
        content = "\n".join(_block(block) for block in section.blocks)
        body.append(f'<section id="{anchor}"><h2>{escape(section.title)}</h2>\n{content}\n</section>')
    content = "\n".join(body)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="author" content="CleanAI-Ray">\n'
        f"<title>{title}</title>\n<style>\n{_read('page.css')}\n</style>\n</head>\n<body>\n<main>\n{content}\n</main>\n"
        + "\n".join(_scripts(document))
        + "\n</body>\n</html>\n"
    )


def _read(name: str) -> str:
    return (_PAGE / name).read_text(encoding="utf-8").strip()


def _scripts(document: blocks.Document) -> Iterable[str]:
    """Yield what the page is drawn from, then one copy of the library that draws charts, then the page's own script."""
    everything = [*document.cover, *(block for chapter in document.chapters for block in chapter.blocks)]
    charts = [block for block in everything if isinstance(block, blocks.Figure) and block.specification]
    for chart in charts:
        yield _data(f"chart-{chart.name}", chart.specification)
    for table in everything:
        if isinstance(table, blocks.TrialTable):
            columns = [asdict(column) for column in table.columns]
            yield _data("trials", {"columns": columns, "rows": table.rows, "highlighted": table.highlighted})
    if charts:
        yield _data("dark-colours", style.DARK)
        library = style.javascript().replace("</script", r"<\/script")
        yield f"<script>{library}</script>"
    yield f"<script>\n{_read('page.js')}\n</script>"


def _data(name: str, value: Any) -> str:
    """Return JSON in an element of its own; `<` is written so that no text in it can end the element."""
    text = json.dumps(_rounded(value), separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _block(block: blocks.Block) -> str:
    if isinstance(block, blocks.Heading):
        return f"<h3>{escape(block.text)}</h3>"
    if isinstance(block, blocks.Paragraph):
        return f"<p{' class=small' if block.is_small else ''}>{escape(block.text)}</p>"
    if isinstance(block, blocks.Callout):
        return f'<div class="callout {block.tone}"><strong>{escape(block.title)}</strong>{escape(block.text)}</div>'
    if isinstance(block, blocks.KeyNumbers):
        numbers = (
            f"<div><span>{escape(number.label)}</span><b>{escape(number.value)}</b><span>{escape(number.note)}</span></div>"
            for number in block.numbers
        )
        return f'<div class="numbers">{"".join(numbers)}</div>'
    if isinstance(block, blocks.Table):
        return _table(block)
    if isinstance(block, blocks.TrialTable):
        return (
            f'<div class="trials" data-rows="trials"><div class="tools"></div><div class="rows scroll"></div>'
            f'<div class="printed">{_table(block.printed)}</div></div>'
        )
    if isinstance(block, blocks.Figure):
        return _figure(block)
    if isinstance(block, blocks.Code):
        return f"<pre><code>{escape(block.text)}</code></pre>"
    return _risk(block)


def _figure(block: blocks.Figure) -> str:
    drawn = embed_svg(block.svg, block.name)
    if not block.specification:
        return f"<figure>{drawn}</figure>"
    return f'<figure data-chart="{block.name}"><div class="drawn">{drawn}</div><div class="live"></div></figure>'


def embed_svg(svg: str, name: str) -> str:
    """Return an SVG that can stand in a page beside others: the names that it refers to itself by are made its own."""
    own = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    own = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", own)
    own = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', own)
    return own[own.index("<svg") :]


def _table(block: blocks.Table) -> str:
    classes = [' class="number"' if column.is_number else "" for column in block.columns]
    head = ""
    if block.has_header:
        titles = "".join(
            f'<th scope="col"{kind}>{escape(column.title)}</th>'
            for column, kind in zip(block.columns, classes, strict=True)
        )
        head = f"<thead><tr>{titles}</tr></thead>"
    rows = []
    for position, row in enumerate(block.rows):
        kind = ' class="highlight"' if position in block.highlighted else ""
        cells = "".join(f"<td{kind_}>{escape(text)}</td>" for text, kind_ in zip(row, classes, strict=True))
        rows.append(f"<tr{kind}>{cells}</tr>")
    return f'<div class="scroll"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _risk(block: blocks.RiskNote) -> str:
    details = "".join(f"<li>{escape(line)}</li>" for line in block.details)
    listed = f"<ul>{details}</ul>" if details else ""
    return (
        f'<div class="risk {block.severity}"><p><span class="tag">{block.severity}</span>'
        f'<span class="muted">{escape(block.title)}</span></p><p>{escape(block.text)}</p>{listed}</div>'
    )
