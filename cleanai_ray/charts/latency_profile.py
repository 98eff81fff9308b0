"""The time of the whole model as each group of layers gets narrower."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt
import polars as pl

from cleanai_ray.charts import style

if TYPE_CHECKING:
    from altair.typing import ChartType

_COLUMNS = 3
_PANEL = (170, 90)
MAX_PANELS = 30
"""The most groups that are drawn: those that save most."""


def draw(table: pl.DataFrame) -> ChartType | None:
    """Return the chart of profile.parquet: stairs and measurements of each group; None where it has none.

    Args:
        table: The rows of profile.parquet.
    """
    cells = panels(table)
    if cells.is_empty():
        return None
    names = cells.unique("panel", maintain_order=True)["panel"].to_list()
    base = alt.Chart(style.values(cells)).encode(
        x=alt.X("width:Q", title="channels kept", axis=alt.Axis(tickCount=4)),
    )
    stairs = base.mark_line(interpolate="step-before", color=style.DENSE).encode(
        y=alt.Y("fitted:Q", title="ms", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=4))
    )
    points = base.mark_point(size=22, filled=True, color=style.ALARM, opacity=0.8).encode(y="measured:Q")
    return (
        alt.layer(stairs, points)
        .properties(width=_PANEL[0], height=_PANEL[1])
        .facet(facet=alt.Facet("panel:N", sort=names, title=None), columns=_COLUMNS)
        .resolve_scale(x="independent")
        .properties(
            title=alt.TitleParams(
                "Time of the whole model as one group narrows",
                subtitle=[
                    f"Milliseconds in {cells['target'][0]}. Line: monotone fit, with its stairs; dots: as measured."
                ],
            )
        )
    )


def panels(table: pl.DataFrame) -> pl.DataFrame:
    """Return a row per group and width, dense included: panel, width, fitted, measured and target."""
    alone = table.filter(pl.col("kind") == "group")
    if alone.is_empty():
        return pl.DataFrame()
    dense = alone.unique("group_index", keep="first", maintain_order=True).with_columns(
        pl.col("num_channels").alias("width"),
        pl.col("milliseconds_dense").alias("fitted_milliseconds"),
        pl.col("milliseconds_dense").alias("milliseconds"),
    )
    every = pl.concat([alone, dense])
    saved = pl.col("milliseconds_dense").max() - pl.col("fitted_milliseconds").min()
    most = every.group_by("group_index").agg(saved.alias("saved")).sort("saved", descending=True).head(MAX_PANELS)
    return (
        every.join(most, on="group_index", how="semi")
        .sort("group_index", "width")
        .select(
            (pl.col("group_index").cast(pl.String) + " " + pl.col("group").map_elements(_short, pl.String)).alias(
                "panel"
            ),
            "width",
            pl.col("fitted_milliseconds").alias("fitted"),
            pl.col("milliseconds").alias("measured"),
            "target",
        )
    )


def _short(name: str) -> str:
    return style.shorten(name, 24)
