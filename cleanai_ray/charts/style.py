"""One look for every chart: fonts, sizes, and the same colour and shape for a method wherever it appears.

The hues are Okabe and Ito's and Paul Tol's, chosen to stay apart for colour-blind readers; shapes tell methods apart in
grey print.
"""

from __future__ import annotations

import hashlib
import importlib.util
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import altair as alt
import polars as pl
from altair.utils.schemapi import debug_mode

if TYPE_CHECKING:
    from altair.typing import ChartType

WIDTH = 660
"""Width of a full-width chart in pixels; a report scales it to the text width of A4, three quarters of it in points."""

CHARACTER = 6.6
"""Width of a label's character in pixels."""

MAX_DRAWN, MAX_DRAWN_IN_PANEL = 1500, 150
"""The most trials that a chart draws, and that one panel of a chart with several panels draws."""

FONT = "DejaVu Sans, Bitstream Vera Sans, Verdana, sans-serif"
INK, MUTED, GRID, FAINT = "#1b2733", "#5b6875", "#e3e7eb", "#c3cad1"
CELL_INK = "#1b2734"
"""Text on a light cell, which stays light on a dark page."""

DENSE = "#1b2733"
"""The dense model's colour, in every chart."""

ALARM = "#d7301f"

METHOD_COLOURS = {
    "coverage": "#0072b2",
    "adaptive": "#56b4e9",
    "wanda": "#e69f00",
    "magnitude": "#009e73",
    "taylor": "#cc79a7",
    "reconstruction": "#d55e00",
    "random": "#8a8a8a",
    "hessian": "#332288",
    "lamp": "#999933",
    "bn_scale": "#882255",
    "fpgm": "#117733",
    "hybrid": "#aa4499",
}
"""The colours of the methods that ship with CleanAI-Ray."""

_SPARE_COLOURS = ("#44aa99", "#cc6677", "#6699cc", "#661100", "#ddcc77", "#4b0082", "#b15928", "#66a61e")

_SHAPES = (
    "circle",
    "square",
    "triangle-up",
    "diamond",
    "triangle-down",
    "M-0.25,-1H0.25V-0.25H1V0.25H0.25V1H-0.25V0.25H-1V-0.25H-0.25Z",
    "triangle-right",
    "triangle-left",
    "M0,-1L0.29,-0.4L0.95,-0.31L0.48,0.15L0.59,0.81L0,0.5L-0.59,0.81L-0.48,0.15L-0.95,-0.31L-0.29,-0.4Z",
    "M-0.87,-0.5L0,-1L0.87,-0.5V0.5L0,1L-0.87,0.5Z",
)

_MODE_FILL = {"local": 1.0, "global": 0.0, "isomorphic": 0.4}

DARK = {
    INK: "#e3e8ed",
    MUTED: "#9aa7b3",
    GRID: "#29333d",
    FAINT: "#4a5662",
    "white": "#12181e",
    "#0072b2": "#3d9fdc",
    "#332288": "#8c7fe3",
    "#882255": "#d0699b",
    "#117733": "#45b06d",
    "#aa4499": "#cf6fbe",
    "#661100": "#c4704f",
    "#4b0082": "#a374d9",
    "#b15928": "#cf7a48",
}
"""Colours of a dark page by those of a light one; `white` only for fills, outlines and backgrounds."""

_VERSION = alt.SCHEMA_VERSION.lstrip("v").rpartition(".")[0]

_CONFIG: dict[str, Any] = {
    "font": FONT,
    "background": "white",
    "padding": 4,
    "view": {"stroke": None},
    "mark": {"tooltip": {"content": "encoding"}},
    "text": {"tooltip": None},
    "rule": {"tooltip": None},
    "axis": {
        "labelFontSize": 11,
        "titleFontSize": 11.5,
        "titleFontWeight": "normal",
        "labelColor": INK,
        "titleColor": MUTED,
        "gridColor": GRID,
        "domainColor": FAINT,
        "tickColor": FAINT,
        "labelLimit": 260,
        "titlePadding": 8,
    },
    "legend": {
        "labelFontSize": 11,
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "labelColor": INK,
        "titleColor": MUTED,
        "labelLimit": 220,
        "symbolSize": 70,
    },
    "header": {"labelFontSize": 12, "titleFontSize": 12, "labelFontWeight": "bold", "labelColor": INK},
    "title": {
        "fontSize": 14,
        "fontWeight": "bold",
        "color": INK,
        "anchor": "start",
        "subtitleFontSize": 11,
        "subtitleColor": MUTED,
        "offset": 12,
        "subtitlePadding": 4,
    },
}


def method_colours(methods: Iterable[str]) -> dict[str, str]:
    """Return a colour for every method of a study.

    Methods that ship with CleanAI-Ray have a fixed one. Any other takes the spare colour that its name selects, or the
    next one free in this study, so that the colours depend only on the set of names.
    """
    chosen: dict[str, str] = {}
    for method in sorted(set(methods)):
        if method in METHOD_COLOURS:
            chosen[method] = METHOD_COLOURS[method]
            continue
        start = int(hashlib.sha256(method.encode()).hexdigest(), 16)
        pool = [_SPARE_COLOURS[(start + step) % len(_SPARE_COLOURS)] for step in range(len(_SPARE_COLOURS))]
        free = [colour for colour in pool if colour not in chosen.values()]
        chosen[method] = free[0] if free else pool[0]
    return chosen


def label_colours(labels: Iterable[str]) -> dict[str, str]:
    """Return the colour of every label (method, or method/coverage metric): that of its method."""
    labels = sorted(set(labels))
    colours = method_colours(label.partition("/")[0] for label in labels)
    return {label: colours[label.partition("/")[0]] for label in labels}


def label_shapes(labels: Iterable[str]) -> dict[str, str]:
    """Return the point shape of every label.

    Labels of one method, which share a colour, always differ. Methods without a metric take the shapes in turn, so
    that neighbours in a legend differ in grey print too.
    """
    labels = sorted(set(labels))
    members: dict[str, list[str]] = {}
    for label in labels:
        members.setdefault(label.partition("/")[0], []).append(label)
    shapes: dict[str, str] = {}
    single = 0
    for group in members.values():
        for position, label in enumerate(group):
            turn = position if len(group) > 1 else single
            shapes[label] = _SHAPES[turn % len(_SHAPES)]
        single += len(group) == 1
    return shapes


def scale(mapping: dict[str, Any], domain: Sequence[str] | None = None) -> alt.Scale:
    """Return the ordinal scale that maps names to colours, shapes or other marks."""
    names = list(domain if domain is not None else mapping)
    return alt.Scale(domain=names, range=[mapping[name] for name in names])


def mode_fill_scale(modes: Iterable[str]) -> alt.Scale:
    """Return the fill opacities of modes: local is filled, global is hollow."""
    fills = scale({name: _MODE_FILL.get(name, 0.2) for name in ordered_modes(modes)})
    fills.type = "ordinal"  # By default, numbers would be spread evenly between the first and the last.
    return fills


def ordered_modes(modes: Iterable[str]) -> list[str]:
    """Return modes without repetition, local first."""
    return sorted(set(modes), key=lambda name: (name != "local", name))


def thinned(frame: pl.DataFrame, limit: int = MAX_DRAWN) -> pl.DataFrame:
    """Return the rows of at most `limit` trials, chosen by their ids alone: more marks would show no more.

    Args:
        frame: Rows with a `trial_id`.
        limit: The most trials to keep.
    """
    names = frame["trial_id"].unique().to_list()
    if len(names) <= limit:
        return frame
    chosen = sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:limit]
    return frame.filter(pl.col("trial_id").is_in(chosen))


def thinned_note(drawn: int, total: int) -> list[str]:
    """Return a line that says how many trials a chart draws; no line where it draws all."""
    return [f"{drawn:,} of {total:,} trials are drawn, chosen at random"] if drawn < total else []


def values(frame: pl.DataFrame) -> alt.InlineData:
    """Return a frame as inline chart data, without the limit on rows that altair puts on data frames."""
    with debug_mode(False):  # altair would compare every row with the schema of JSON itself
        return alt.InlineData(values=frame.to_dicts())


def shorten(name: str, limit: int) -> str:
    """Return a module name cut to at most `limit` characters, with an ellipsis in the middle."""
    if len(name) <= limit:
        return name
    head = max(1, (limit - 1) // 3)
    return f"{name[:head]}\N{HORIZONTAL ELLIPSIS}{name[len(name) - (limit - 1 - head) :]}"


def specification(chart: ChartType) -> dict[str, Any]:
    """Return a chart in the house style as a Vega-Lite specification."""
    return {**chart.to_dict(), "config": _CONFIG}


def draw(chart: Mapping[str, Any]) -> str:
    """Render a specification to SVG, offline."""
    import vl_convert  # here, so that without it only what it draws is missing

    _register_fonts()
    return vl_convert.vegalite_to_svg({**chart, "config": {**chart["config"], "aria": False}}, vl_version=_VERSION)


def to_svg(chart: ChartType) -> str:
    """Render a chart to SVG in the house style, offline."""
    return draw(specification(chart))


@cache
def javascript() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script that sets `vegaEmbed` and loads nothing."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_VERSION)


@cache
def _register_fonts() -> None:
    """Register the fonts that reportlab ships, so that charts look the same on a machine without fonts."""
    import vl_convert

    found = importlib.util.find_spec("reportlab")
    if found is None or found.origin is None:
        return
    folder = Path(found.origin).parent / "fonts"
    if folder.is_dir():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            vl_convert.register_font_directory(str(folder))
