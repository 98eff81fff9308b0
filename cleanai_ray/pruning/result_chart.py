"""A chart of what each layer kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from altair.typing import ChartType

COSTS = {"channels": "out_channels", "params": "params", "macs": "macs"}
"""The columns of layers.parquet that can be drawn; with `_dense`, those of the dense model."""

_TITLES = {"channels": "output channels", "params": "parameters", "macs": "MACs"}
_STEP = 16


def result_chart(layers: Sequence[Mapping[str, Any]], cost: str, title: str) -> ChartType:
    """Return bars of what each layer kept, with the dense model's as an outline.

    Args:
        layers: Rows of layers.parquet, in execution order.
        cost: One of `COSTS`.
        title: Title of the chart.

    Raises:
        ValueError: When the cost is another.
    """
    if cost not in COSTS:
        raise ValueError(f"cost is {cost!r}; allowed: {', '.join(COSTS)}")
    import altair as alt

    from cleanai_ray.charts import style

    column = COSTS[cost]
    names = [style.shorten(str(layer["layer"]), 34) for layer in layers]
    if len(set(names)) < len(names):
        names = [f"{index}  {name}" for index, name in enumerate(names)]
    rows = [
        {"layer": name, "kept": layer[column], "dense": layer[f"{column}_dense"]}
        for name, layer in zip(names, layers, strict=True)
    ]
    base = alt.Chart(alt.InlineData(values=rows))
    order = [row["layer"] for row in rows]
    y = alt.Y("layer:N", sort=order, title=None, axis=alt.Axis(ticks=False, domain=False, labelLimit=300))
    kept = base.mark_bar(height={"band": 0.72}, fill=style.METHOD_COLOURS["coverage"])
    outline = base.mark_bar(height={"band": 0.72}, fill=None, stroke=style.DENSE, strokeWidth=0.9)
    drawn = alt.layer(
        kept.encode(x=alt.X("kept:Q", title=_TITLES[cost]), y=y),
        outline.encode(x=alt.X("dense:Q", title=_TITLES[cost]), y=y),
    ).properties(
        width=style.WIDTH - 200,
        height=alt.Step(_STEP),
        title=alt.TitleParams(title, subtitle=["Outline: dense; filled: kept"]),
    )
    return alt.LayerChart.from_dict(style.specification(drawn))
