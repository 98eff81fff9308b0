"""The report as one HTML file that needs nothing else: style and charts are inside."""

from __future__ import annotations

import re
from html import escape

from cleanai_ray.report import blocks

_STYLE = """
:root { color-scheme: light dark; --ink: #1b2733; --muted: #5b6875; --rule: #d5dbe1; --shade: #f4f6f8; --paper: #fff;
  --accent: #173f5f; --tint: #e4eff7; --good: #1b7f4b; --warn: #a86200; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e8ed; --muted: #9aa7b3; --rule: #38434e; --shade: #1d252d;
  --paper: #12181e; --accent: #8fc1e8; --tint: #1c3347; --good: #6cc798; --warn: #e5a84b; --bad: #f28b82; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", Verdana, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
header.top { border-bottom: 3px solid var(--accent); margin-bottom: 1.5rem; }
header.top p { margin: .2rem 0 1rem; }
h1 { font-size: 2rem; margin: .3rem 0; color: var(--accent); overflow-wrap: anywhere; }
h2 { font-size: 1.4rem; margin: 3rem 0 .8rem; color: var(--accent); }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .4rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; margin: 0 0 1.5rem; list-style: none; }
a { color: var(--accent); }
.muted, .small { color: var(--muted); } .small { font-size: .86rem; }
.callout { border-left: 4px solid var(--accent); background: var(--shade); padding: .8rem 1.1rem; margin: 1rem 0; }
.callout strong { display: block; }
.callout.good { border-color: var(--good); } .callout.good strong { color: var(--good); }
.callout.warn { border-color: var(--warn); } .callout.warn strong { color: var(--warn); }
.callout.bad { border-color: var(--bad); } .callout.bad strong { color: var(--bad); }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1rem; margin: 1.2rem 0; }
.numbers div { border-left: 2px solid var(--rule); padding-left: .7rem; }
.numbers b { display: block; font-size: 1.5rem; } .numbers span { color: var(--muted); font-size: .85rem; }
.scroll { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .28rem .55rem; border-bottom: 1px solid var(--rule); vertical-align: top; }
thead th { border-bottom: 2px solid var(--ink); background: var(--paper); white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
tr.highlight td { background: var(--tint); }
figure { margin: 1.2rem 0; padding: .8rem; background: #fff; border: 1px solid var(--rule); border-radius: 6px; }
figure svg { display: block; max-width: 100%; height: auto; margin: 0 auto; }
pre { background: var(--shade); padding: .9rem 1rem; overflow-x: auto; font-size: .82rem; line-height: 1.45; }
.risk { border-left: 4px solid var(--muted); padding: .1rem 0 .1rem 1rem; margin: 1.1rem 0; }
.risk.high { border-color: var(--bad); } .risk.medium { border-color: var(--warn); }
.risk p { margin: .15rem 0; }
.risk ul { margin: .3rem 0; padding-left: 1.2rem; color: var(--muted); font-size: .88rem; }
.risk li { overflow-wrap: anywhere; }
.tag { font-size: .75rem; font-weight: 700; letter-spacing: .04em; text-transform: uppercase; margin-right: .5rem; }
.high .tag { color: var(--bad); } .medium .tag { color: var(--warn); } .info .tag { color: var(--muted); }
@media print { body { font-size: 10.5pt; } h2 { break-before: page; } figure, tr, .risk { break-inside: avoid; } }
""".strip()


def to_html(document: blocks.Document) -> str:
    """Return a report as one HTML page."""
    title = escape(document.heading)
    anchors = [(f"section-{number}", section) for number, section in enumerate(document.sections, start=1)]
    links = "".join(f'<li><a href="#{anchor}">{escape(section.title)}</a></li>' for anchor, section in anchors)
    question = f'<p class="muted">{escape(document.question)}</p>' if document.question else ""
    version = f"CleanAI-Ray {escape(document.version)}".strip()
    body = [
        f'<header class="top"><span class="muted">{version} \N{MIDDLE DOT} pruning study report</span>'
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
        f"<title>{title}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n<main>\n{content}\n</main>\n</body>\n</html>\n"
    )


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
    if isinstance(block, blocks.Figure):
        return f"<figure>{embed_svg(block.svg, block.name)}</figure>"
    if isinstance(block, blocks.Code):
        return f"<pre><code>{escape(block.text)}</code></pre>"
    return _risk(block)


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
