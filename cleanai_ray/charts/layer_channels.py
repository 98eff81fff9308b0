"""Channels that the best trial kept in every layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt
import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.charts import style
from cleanai_ray.registry import CHARTS

if TYPE_CHECKING:
    from altair.typing import ChartType

_MOST_NAMED_LAYERS = 60
"""Beyond these, layers are columns along their index: names would be too small to read on a page."""


@CHARTS.register("layer_channels")
def layer_channels(study: StudyFrames) -> ChartType | None:
    """Channels kept in every layer of the best trial, with the dense width as an outline."""
    if study.best is None:
        return None
    layers = study.layers_of(study.best["trial_id"]).drop_nulls(["out_channels", "out_channels_dense"])
    if layers.is_empty():
        return None
    frame = layers.select(
        pl.col("layer").map_elements(lambda name: style.shorten(name, 34), return_dtype=pl.String),
        pl.col("layer_index").fill_null(0),
        pl.col("out_channels").alias("kept"),
        pl.col("out_channels_dense").alias("dense"),
        (pl.col("group").is_not_null() | (pl.col("out_channels") < pl.col("out_channels_dense"))).alias("prunable"),
    ).with_columns(
        pl.format("{}  {}", pl.int_range(pl.len()), "layer").alias("name"),
        pl.int_range(pl.len()).alias("position"),
        pl.format("{} / {}", "kept", "dense").alias("text"),
    )
    colour = style.method_colours(study.methods)[study.best["method"]]
    draw = _named_bars if len(frame) <= _MOST_NAMED_LAYERS else _indexed_columns
    subtitle = [f"Best trial: {study.best['trial_id']}", "Outline: dense; filled: kept; grey: not prunable"]
    return draw(frame, colour).properties(title=alt.TitleParams("Channels kept, layer by layer", subtitle=subtitle))


def _fill(colour: str) -> alt.Fill:
    return alt.Fill("prunable:N", scale=alt.Scale(domain=[True, False], range=[colour, style.FAINT]), legend=None)


def _named_bars(frame: pl.DataFrame, colour: str) -> ChartType:
    base = alt.Chart(style.values(frame))
    y_axis = alt.Axis(ticks=False, domain=False, labelPadding=6, labelFontSize=10, labelLimit=300)
    y = alt.Y("name:N", sort=frame["name"].to_list(), axis=y_axis, title=None)
    scale = alt.Scale(domain=[0, 1.2 * max(frame["dense"])], nice=False)
    axis = alt.Axis(tickMinStep=1, tickCount=8)
    dense = alt.X("dense:Q", title="output channels", scale=scale, axis=axis)
    step = 15 if len(frame) <= 40 else 13.5
    return alt.layer(
        base.mark_bar(height={"band": 0.72}).encode(x=alt.X("kept:Q", scale=scale, axis=axis), y=y, fill=_fill(colour)),
        base.mark_bar(height={"band": 0.72}, fill=None, stroke=style.DENSE, strokeWidth=0.9).encode(x=dense, y=y),
        base.mark_text(align="left", dx=5, fontSize=9.5, color=style.INK).encode(x=dense, y=y, text="text:N"),
    ).properties(
        width=style.WIDTH, height=alt.Step(step), autosize=alt.AutoSizeParams(type="fit-x", contains="padding")
    )


def _indexed_columns(frame: pl.DataFrame, colour: str) -> ChartType:
    frame = frame.filter("prunable")
    num_rows = max(2, -(-len(frame) // 70))
    length = -(-len(frame) // num_rows)
    highest = max(frame["dense"], default=1)
    rows = []
    for start in range(0, len(frame), length):
        part = frame.slice(start, length)
        first = part["position"][0]
        base = alt.Chart(style.values(part))
        width = 0.72 * (style.WIDTH - 70) / length
        x = alt.X(
            "position:Q",
            title="layer, in execution order (without those that cannot be pruned)"
            if start + length >= len(frame)
            else None,
            scale=alt.Scale(domain=[first - 1, first + length + 1], nice=False),
            axis=alt.Axis(tickCount=14, tickMinStep=1, grid=False),
        )
        y_scale = alt.Scale(domain=[0, highest])
        kept = alt.Y("kept:Q", title="output channels", scale=y_scale)
        columns = base.mark_bar(width=width).encode(x=x, y=kept, fill=_fill(colour))
        outline = base.mark_bar(width=width, fill=None, stroke=style.DENSE, strokeWidth=0.7)
        both = alt.layer(columns, outline.encode(x=x, y=alt.Y("dense:Q", scale=y_scale)))
        rows.append(both.properties(width=style.WIDTH - 66, height=400 / num_rows))
    return alt.vconcat(*rows, spacing=14)
