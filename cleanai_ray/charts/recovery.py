"""The accuracy that each stage recovers: after pruning, repair and fine-tuning."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import altair as alt
import polars as pl

from cleanai_ray.analysis.cells import near_chance_points
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import percent, plural
from cleanai_ray.charts import style
from cleanai_ray.registry import CHARTS

if TYPE_CHECKING:
    from altair.typing import ChartType

_STAGES = ("accuracy_pruned", "accuracy_repaired", "accuracy_finetuned")
_PIECES = {
    "after pruning": "#c3cad1",
    "gained by repair": "#56b4e9",
    "gained by fine-tuning": "#e69f00",
    "lost again": "#d7301f",
}

_COUNTS = 110
"""Width of an accuracy with the number of its trials, in pixels."""


@CHARTS.register("recovery")
def recovery(study: StudyFrames) -> ChartType | None:
    """Mean accuracy of every method after pruning, and what repair and fine-tuning add to it.

    Trials that are near chance after pruning or in the end are left out: a mean of what models without knowledge score
    says nothing of a method.
    """
    present = [name for name in _STAGES if study.ok[name].count()]
    if len(present) < 2 or present[0] != _STAGES[0]:
        return None
    staged = study.ok.drop_nulls(present)
    knows = 100 * pl.col("accuracy_pruned") > near_chance_points()
    clear = staged.filter(knows.fill_null(True) & ~pl.col("is_broken").fill_null(False))
    means = clear.group_by("label").agg(pl.mean(*present), pl.len().alias("count"))
    if means.is_empty():
        return None
    means = means.sort([present[-1], "label"], descending=[True, False])
    order = means["label"].to_list()
    totals = dict(staged.group_by("label").len().rows())
    rows = [piece for row in means.iter_rows(named=True) for piece in _pieces(row, present)]
    dense = study.dense.get("accuracy")
    is_whole = len(clear) == len(staged)
    end = _room(order, is_whole=is_whole) * max([dense or 0.0, *(row["end"] for row in rows)])
    scale = alt.Scale(domain=[0, end], nice=False)
    ticks = _ticks(end)
    x = alt.X("start:Q", title="top-1 accuracy", scale=scale, axis=alt.Axis(format="~%", values=ticks))
    y = alt.Y("label:N", sort=order, title=None, axis=alt.Axis(ticks=False, domain=False, labelPadding=8))
    shown = [name for name in _PIECES if name in {row["piece"] for row in rows}]
    colours = style.scale({name: _PIECES[name] for name in shown})
    bars = (
        alt.Chart(alt.InlineData(values=rows))
        .mark_bar(height={"band": 0.65}, stroke="white", strokeWidth=0.6)
        .encode(
            x=x,
            x2="end:Q",
            y=y,
            color=alt.Color("piece:N", scale=colours, sort=shown, legend=alt.Legend(title=None, orient="bottom")),
        )
    )
    ends = [
        {
            "label": row["label"],
            "end": max(dense or 0.0, *(row[name] for name in present)),
            "text": _text(row[present[-1]], row["count"], totals[row["label"]], is_whole=is_whole),
        }
        for row in means.iter_rows(named=True)
    ]
    texts = (
        alt.Chart(alt.InlineData(values=ends))
        .mark_text(align="left", dx=6, fontSize=10, color=style.INK)
        .encode(x=alt.X("end:Q", scale=scale), y=y, text="text:N")
    )
    layers = [bars, texts, *_dense_line(dense, scale)]
    return alt.layer(*layers).properties(
        width=style.WIDTH,
        height=alt.Step(24),
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
        title=alt.TitleParams(
            "Accuracy that each stage recovers", subtitle=_subtitle(dense, len(staged) - len(clear), len(staged))
        ),
    )


def _dense_line(dense: float | None, scale: alt.Scale) -> list[alt.Chart]:
    if dense is None:
        return []
    line = alt.Chart(alt.InlineData(values=[{"dense": dense}]))
    return [line.mark_rule(color=style.DENSE, strokeDash=[2, 3]).encode(x=alt.X("dense:Q", scale=scale))]


def _room(order: list[str], *, is_whole: bool) -> float:
    """Return how much longer than the longest bar the axis is, so that the text behind it has room."""
    plot = style.WIDTH - min(260.0, style.CHARACTER * max(map(len, order))) - 20
    return 1.1 if is_whole else 1 / (1 - _COUNTS / plot)


def _ticks(end: float) -> list[float]:
    """Return round numbers from 0 to at most 1, at least three of them within the axis."""
    step = next((step for step in (0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002) if end >= 3 * step), 0.001)
    return [round(place * step, 3) for place in range(round(1 / step) + 1) if place * step <= max(end, 3 * step)]


def _text(accuracy: float, count: int, total: int, *, is_whole: bool) -> str:
    return percent(accuracy) if is_whole else f"{percent(accuracy)}, {count} of {total}"


def _subtitle(dense: float | None, num_left_out: int, num_trials: int) -> list[str]:
    line = "" if dense is None else f"; dotted: dense, {percent(dense)}"
    lines = [f"Mean over the trials of a method; number: after the last stage{line}"]
    if num_left_out:
        lines.append(
            f"Left out: {num_left_out} of {plural(num_trials, 'trial')}, near chance after pruning or in the end; each"
        )
        lines.append("method is shown over its own that are left, so this ranks no methods")
    return lines


def _pieces(row: dict[str, Any], present: list[str]) -> list[dict[str, Any]]:
    pieces = [{"label": row["label"], "piece": "after pruning", "start": 0.0, "end": row[present[0]]}]
    for before, after in pairwise(present):
        gained = "gained by repair" if after == "accuracy_repaired" else "gained by fine-tuning"
        low, high = sorted((row[before], row[after]))
        piece = gained if row[after] >= row[before] else "lost again"
        pieces.append({"label": row["label"], "piece": piece, "start": low, "end": high})
    return pieces
