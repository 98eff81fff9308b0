"""The best trial beside the dense model, in every quantity that was measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import altair as alt

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import change, milliseconds, percent, points, quantity, size
from cleanai_ray.charts import style
from cleanai_ray.registry import CHARTS

if TYPE_CHECKING:
    from altair.typing import ChartType

_ROWS: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("top-1 accuracy", "accuracy", percent),
    ("MACs", "macs", quantity),
    ("parameters", "params", quantity),
    ("size of weights", "size_bytes", size),
    ("latency (p50)", "latency_ms", milliseconds),
    ("throughput (images/s)", "throughput", quantity),
)


@CHARTS.register("dense_vs_best")
def dense_vs_best(study: StudyFrames) -> ChartType | None:
    """Accuracy, MACs, parameters, size and speed of the best trial, relative to the dense model."""
    best = study.best
    if best is None:
        return None
    # Throughput is torch's, at another batch size than a target's.
    columns = _ROWS if study.target is None else _ROWS[:-1]
    rows = [row for name, column, write in columns if (row := _row(best, name, column, write)) is not None]
    if not rows:
        return None
    longest = max(1.0, *(row["share"] for row in rows))
    names = [row["name"] for row in rows]
    base = alt.Chart(alt.InlineData(values=rows))
    y_axis = alt.Axis(ticks=False, domain=False, labelPadding=8)
    y = alt.Y("name:N", sort=names, axis=y_axis, title=None)
    scale = alt.Scale(domain=[0, 1.62 * longest], nice=False)
    ticks = [tick / 4 for tick in range(5)] if longest < 2 else list(range(int(longest) + 1))
    x = alt.X("share:Q", title="share of the dense model", scale=scale, axis=alt.Axis(format="~%", values=ticks))
    dense = alt.X("dense:Q", scale=scale)
    colour = style.method_colours(study.methods)[best["method"]]
    chart = alt.layer(
        base.mark_bar(height={"band": 0.6}, color=colour).encode(x=x, y=y),
        base.mark_bar(height={"band": 0.6}, fill=None, stroke=style.DENSE, strokeWidth=1).encode(x=dense, y=y),
        base.mark_text(align="left", dx=8, fontSize=11, color=style.INK).encode(
            x=alt.X("end:Q", scale=scale), y=y, text="text:N"
        ),
    )
    return chart.properties(
        width=style.WIDTH,
        height=alt.Step(30),
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
        title=alt.TitleParams("Dense against best", subtitle=[f"Filled: {best['trial_id']}", "Outline: dense = 100 %"]),
    )


def _row(best: dict[str, Any], name: str, column: str, write: Callable[[float | None], str]) -> dict[str, Any] | None:
    value, dense = best[column], best[f"{column}_dense"]
    if value is None or not dense:
        return None
    difference = points(value - dense) if column == "accuracy" else change(value, dense)
    share = value / dense
    text = f"{write(value)}, dense {write(dense)} ({difference})"
    return {"name": name, "share": share, "dense": 1.0, "end": max(share, 1.0), "text": text}
