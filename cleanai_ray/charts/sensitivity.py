"""The change of the model's output when one dependency group alone is narrowed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt
import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.charts import style
from cleanai_ray.registry import CHARTS

if TYPE_CHECKING:
    from altair.typing import ChartType

RATIOS = tuple(step / 10 for step in range(1, 10))
_FLOOR = 1e-4


@CHARTS.register("sensitivity")
def sensitivity(study: StudyFrames) -> ChartType | None:
    """Divergence from the dense model when one group alone is narrowed, and compensated for."""
    return draw(study.sensitivity)


def draw(table: pl.DataFrame) -> ChartType | None:
    """Return the chart of sensitivity.parquet; None where it is empty or nothing was measured."""
    cells = sensitivity_cells(table)
    if cells.is_empty():
        return None
    names = cells.sort("group_index")["group"].unique(maintain_order=True).to_list()
    short = {name: style.shorten(name, 34) for name in names}
    if len(set(short.values())) < len(names):
        short = {name: f"{position} {short[name]}" for position, name in enumerate(names)}
    cells = cells.with_columns(
        pl.col("group").replace_strict(short, return_dtype=pl.String).alias("row"),
        pl.col("divergence").clip(_FLOOR).alias("colour"),
        pl.col("divergence").map_elements(_label, return_dtype=pl.String).alias("label"),
    )
    step = 15 if len(names) <= 40 else 11
    y_axis = alt.Axis(ticks=False, domain=False, labelPadding=6, labelFontSize=10, labelLimit=300)
    y = alt.Y(
        "row:N", sort=[short[name] for name in names], axis=y_axis, title="group of layers" if len(names) > 6 else None
    )
    x = alt.X("ratio:O", title="share of the group's channels removed", axis=alt.Axis(format=".0%", labelAngle=0))
    top = max(float(cells["colour"].max() or 1.0), 10 * _FLOOR)  # type: ignore[arg-type]
    scale = alt.Scale(type="log", scheme="yelloworangered", domain=[_FLOOR, top])
    length = min(120, max(40, step * len(names) - 25))
    legend = alt.Legend(title=["KL in nats"], orient="right", gradientLength=length, format=".2~g", offset=6)
    base = alt.Chart(style.values(cells.select("row", "ratio", "colour", "label", "divergence")))
    dark = alt.condition(alt.datum.divergence > top / 8, alt.value("white"), alt.value(style.CELL_INK))
    return alt.layer(
        base.mark_rect(stroke="white").encode(x=x, y=y, color=alt.Color("colour:Q", scale=scale, legend=legend)),
        base.mark_text(fontSize=9).encode(x=x, y=y, text="label:N", color=dark),
    ).properties(
        title=alt.TitleParams(
            "Sensitivity of every group of layers",
            subtitle=[
                "KL divergence of the outputs from the dense model's, in nats, when one group alone is narrowed",
                "and the layers that read it are compensated. No labels are used. Light: safe to narrow.",
            ],
        ),
        width=style.WIDTH,
        height=alt.Step(step),
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
    )


def sensitivity_cells(table: pl.DataFrame) -> pl.DataFrame:
    """Return a row per group and ratio of RATIOS: the divergence after the last removal within that ratio.

    Ratios that are less than one channel of the group are left out.
    """
    known = table.filter(pl.col("divergence").is_not_null())
    parts = []
    for ratio in RATIOS:
        within = known.filter(pl.col("channel_ratio") <= ratio + 1e-9)
        last = within.sort("removed").group_by("group", "group_index", maintain_order=True).last()
        parts.append(last.select("group", "group_index", "divergence").with_columns(pl.lit(ratio).alias("ratio")))
    return pl.concat(parts)


def _label(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"
