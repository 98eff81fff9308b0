"""Accuracy against MACs of every trial."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt
import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import percent, quantity
from cleanai_ray.analysis.pareto import pareto_front
from cleanai_ray.charts import style
from cleanai_ray.charts.trial_marks import accuracy_bounds, mode_fills, trial_points, trial_tooltip
from cleanai_ray.registry import CHARTS

if TYPE_CHECKING:
    from altair.typing import ChartType

_HEIGHT = 330


@CHARTS.register("accuracy_macs")
def accuracy_macs(study: StudyFrames) -> ChartType | None:
    """Accuracy against MACs of every trial, with the Pareto front and the dense model."""
    columns = ["trial_id", "label", "mode", "amount", "macs", "macs_share", "accuracy"]
    frame = study.ok.select(columns).drop_nulls()
    if frame.is_empty():
        return None
    dense = study.dense
    reference = [] if dense.get("accuracy") is None else [dense["accuracy"]]
    domain = accuracy_bounds([*frame["accuracy"], *reference])
    largest = max(1.0, *frame["macs_share"])
    x = alt.X(
        "macs_share:Q",
        title=_x_title(dense),
        axis=alt.Axis(format="%", tickCount=10),
        scale=alt.Scale(domain=[0, largest]),
    )
    y = alt.Y("accuracy:Q", title="top-1 accuracy", axis=alt.Axis(format="~%"), scale=alt.Scale(domain=domain))
    drawn = pl.concat([style.thinned(frame), pareto_front(frame)]).unique("trial_id", maintain_order=True)
    tooltip = [*trial_tooltip(), alt.Tooltip("macs_share:Q", title="MACs kept", format=".1%")]
    points = trial_points(study, drawn).encode(x=x, y=y, tooltip=tooltip)
    layers = [*_dense_layers(dense, x, y), _front_layer(frame, x, y), points]
    chart = alt.layer(*layers).properties(
        width=style.WIDTH,
        height=_HEIGHT,
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
        title=alt.TitleParams(
            "Accuracy against MACs", subtitle=[*_subtitle(frame), *style.thinned_note(len(drawn), len(frame))]
        ),
    )
    return chart


def _subtitle(frame: pl.DataFrame) -> list[str]:
    return ["; ".join(["Line: Pareto front, the trials that no other trial beats", *mode_fills(frame["mode"])])]


def _x_title(dense: dict[str, float | None]) -> str:
    absolute = f" (dense: {quantity(dense['macs'])})" if dense.get("macs") else ""
    return f"MACs of one forward pass, share of the dense model{absolute}"


def _dense_layers(dense: dict[str, float | None], x: alt.X, y: alt.Y) -> list[alt.Chart]:
    accuracy = dense.get("accuracy")
    if accuracy is None:
        return []
    data = alt.InlineData(
        values=[{"accuracy": accuracy, "macs_share": 1.0, "left": 0.0, "text": f"dense {percent(accuracy)}"}]
    )
    base = alt.Chart(data)
    rule = base.mark_rule(color=style.DENSE, strokeDash=[2, 3], strokeWidth=1).encode(y=y)
    point = base.mark_point(shape="diamond", color=style.DENSE, filled=True, opacity=1, size=110, clip=False)
    text = base.mark_text(align="left", baseline="bottom", dx=5, dy=-3, fontSize=11, color=style.DENSE)
    return [rule, point.encode(x=x, y=y), text.encode(x=alt.X("left:Q"), y=y, text="text:N")]


def _front_layer(frame: pl.DataFrame, x: alt.X, y: alt.Y) -> alt.Chart:
    line = alt.Chart(style.values(pareto_front(frame).select("macs_share", "accuracy")))
    return line.mark_line(interpolate="step-after", color=style.MUTED, strokeWidth=1.3).encode(x=x, y=y)
