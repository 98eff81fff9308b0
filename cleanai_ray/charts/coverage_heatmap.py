"""Activity of every channel of every layer on the calibration samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt
import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.charts import style
from cleanai_ray.registry import CHARTS
from cleanai_ray.storage.schemas import coverage_schema

if TYPE_CHECKING:
    from altair.typing import ChartType

NUM_BINS = 64
"""The most cells of a layer; where it has more channels, neighbours are averaged."""

_MOST_NAMED_LAYERS = 64
"""Beyond these, rows are numbered: names would be too small to read on a page."""

_PREFERRED = ("normalized_mean", "frequency", "mean_absolute")


@CHARTS.register("coverage_heatmap")
def coverage_heatmap(study: StudyFrames) -> ChartType | None:
    """Coverage of every layer and channel, and the channels that never change."""
    metric = choose_metric(study)
    if metric is None:
        return None
    channels = select_side(study.coverage).with_columns(pl.col(metric).alias("value"))
    cells = heatmap_cells(channels)
    names = cells.sort("layer_index")["layer"].unique(maintain_order=True).to_list()
    short = {name: style.shorten(name, 34) for name in names}
    if len(names) > _MOST_NAMED_LAYERS:
        short = {name: str(position) for position, name in enumerate(names)}
    elif len(set(short.values())) < len(names):
        short = {name: f"{position} {short[name]}" for position, name in enumerate(names)}
    cells = cells.with_columns(pl.col("layer").replace_strict(short, return_dtype=pl.String).alias("row"))
    side = {"input": "what each layer receives", "output": "what each layer computes"}.get(str(channels["side"][0]), "")
    title = alt.TitleParams(
        f"Coverage of every channel ({metric})",
        subtitle=[
            f"Side: {side}. Colour: relative to the most active channel of the layer.",
            "Red, outlined: dead channels, which never change on the calibration samples; right: their number.",
        ],
    )
    return _draw(cells, [short[name] for name in names]).properties(title=title)


def choose_metric(study: StudyFrames) -> str | None:
    """Return the coverage metric to draw: the best trial's own, else a common one, else any that was computed."""
    base = set(coverage_schema(()).names)
    frame = study.coverage
    computed = [name for name in frame.columns if name not in base and frame[name].count()]
    own = None if study.best is None else study.best["coverage_metric"]
    for name in (own, *_PREFERRED, *computed):
        if name in computed:
            return name
    return None


def select_side(coverage: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of the side on which more layers were observed; of what layers receive if both are equal."""
    counts = coverage.group_by("side").agg(pl.n_unique("layer").alias("layers"))
    side = counts.sort(["layers", "side"], descending=[True, False])["side"][0]
    return coverage.filter(pl.col("side").eq_missing(side))


def is_dead() -> pl.Expr:
    """Return the condition that a channel of coverage.parquet had the same value throughout calibration."""
    return (pl.col("maximum") == pl.col("minimum")).fill_null(False)


def heatmap_cells(channels: pl.DataFrame) -> pl.DataFrame:
    """Return the cells to draw.

    Args:
        channels: Rows of coverage.parquet of one side, with the metric as `value`.

    Returns:
        A row per cell: layer, layer_index, start and end (share of the layer's width, in [0, 1]), value (mean of the
        cell's channels over the largest of the layer), dead (channels of the cell), dead_in_layer, num_channels.
    """
    width = (pl.col("channel").max() + 1).over("layer")
    binned = channels.with_columns(width.alias("num_channels"), is_dead().alias("dead")).with_columns(
        pl.when(pl.col("num_channels") <= NUM_BINS)
        .then(pl.col("channel"))
        .otherwise(pl.col("channel") * NUM_BINS // pl.col("num_channels"))
        .alias("bin"),
        pl.min_horizontal("num_channels", pl.lit(NUM_BINS)).alias("num_bins"),
        pl.col("dead").sum().over("layer").alias("dead_in_layer"),
    )
    keys = ["layer", "layer_index", "bin", "num_bins", "num_channels", "dead_in_layer"]
    cells = binned.group_by(keys, maintain_order=True).agg(pl.mean("value"), pl.sum("dead"))
    largest = pl.col("value").max().over("layer")
    return cells.with_columns(
        pl.when(largest > 0).then(pl.col("value") / largest).otherwise(0.0).clip(0, 1).alias("value"),
        (pl.col("bin") / pl.col("num_bins")).alias("start"),
        ((pl.col("bin") + 1) / pl.col("num_bins")).alias("end"),
    )


def _draw(cells: pl.DataFrame, rows: list[str]) -> ChartType:
    columns = ["row", "start", "end", "value", "dead", "num_channels"]
    named = len(rows) <= _MOST_NAMED_LAYERS
    step = 5 if not named else 12.5 if len(rows) > 40 else 15
    y_axis = alt.Axis(ticks=False, domain=False, labelPadding=6, labelFontSize=10, labelLimit=300)
    if not named:
        y_axis = alt.Axis(ticks=False, domain=False, labelPadding=6, values=rows[::10])
    title = None if named else "layer, in execution order"
    y = alt.Y("row:N", sort=rows, axis=y_axis, title=title, scale=alt.Scale(paddingInner=0.12))
    x_axis = alt.Axis(values=[0, 0.25, 0.5, 0.75, 1], grid=False, format="%")
    x = alt.X("start:Q", title="position of the channel in its layer", axis=x_axis, scale=alt.Scale(domain=[0, 1.1]))
    legend = alt.Legend(
        title=["relative", "coverage"], orient="right", gradientLength=120, tickCount=3, format=".1f", offset=6
    )
    colour = alt.Color("value:Q", scale=alt.Scale(scheme="yellowgreenblue", domain=[0, 1]), legend=legend)
    base = alt.Chart(style.values(cells.select(columns)))
    dead = alt.Chart(style.values(cells.filter(pl.col("dead") > 0).select(columns)))
    counts = cells.select("row", "dead_in_layer").unique(maintain_order=True).filter(pl.col("dead_in_layer") > 0)
    text = alt.Chart(style.values(counts.with_columns(pl.lit(1.0).alias("end"))))
    return alt.layer(
        base.mark_rect().encode(x=x, x2="end:Q", y=y, color=colour, tooltip=_tooltip()),
        dead.mark_rect(fill=style.ALARM, stroke=style.INK, strokeWidth=1 if named else 0.4).encode(
            x=x, x2="end:Q", y=y, tooltip=_tooltip()
        ),
        text.mark_text(align="left", dx=5, fontSize=10 if named else 7, color=style.ALARM).encode(
            x=alt.X("end:Q"), y=y, text="dead_in_layer:Q"
        ),
    ).properties(
        width=style.WIDTH, height=alt.Step(step), autosize=alt.AutoSizeParams(type="fit-x", contains="padding")
    )


def _tooltip() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("row:N", title="layer"),
        alt.Tooltip("num_channels:Q", title="channels"),
        alt.Tooltip("value:Q", title="relative coverage", format=".2f"),
        alt.Tooltip("dead:Q", title="dead channels"),
    ]
