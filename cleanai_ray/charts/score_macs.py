"""A score of which a low value is good, in its own units, against MACs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt
import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import quantity
from cleanai_ray.analysis.score_words import score_number, words_of_study
from cleanai_ray.charts import style
from cleanai_ray.charts.trial_marks import trial_points, trial_tooltip
from cleanai_ray.registry import CHARTS

if TYPE_CHECKING:
    from altair.typing import ChartType

_HEIGHT = 260


@CHARTS.register("score_macs")
def score_macs(study: StudyFrames) -> ChartType | None:
    """Perplexity or RMSE against MACs of every trial, and that of the dense model; a low one is good."""
    words = words_of_study(study)
    columns = ["trial_id", "label", "mode", "amount", "macs", "macs_share", "accuracy", "score"]
    frame = study.ok.select(columns).drop_nulls()
    if frame.is_empty() or not words.is_inverted:
        return None
    dense = study.dense.get("score")
    values = [*frame["score"], *([] if dense is None else [dense])]
    is_wide = min(values) > 0 and max(values) > 5 * min(values)
    scale = alt.Scale(type="log" if is_wide else "linear", zero=False, nice=True)
    x = alt.X(
        "macs_share:Q",
        title=f"MACs of one forward pass, share of the dense model (dense: {quantity(study.dense.get('macs'))})",
        axis=alt.Axis(format="%", tickCount=10),
        scale=alt.Scale(domain=[0, max(1.0, *frame["macs_share"])]),
    )
    y = alt.Y("score:Q", title=f"{words.name}, a low one is good", scale=scale)
    drawn = style.thinned(frame)
    tooltip = [*trial_tooltip(), alt.Tooltip("score:Q", title=words.name, format=".4~g")]
    points = trial_points(study, drawn).encode(x=x, y=y, tooltip=tooltip)
    layers = [*([] if dense is None else _dense_layers(dense, x, y)), points]
    return alt.layer(*layers).properties(
        width=style.WIDTH,
        height=_HEIGHT,
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
        title=alt.TitleParams(f"{words.name[0].upper()}{words.name[1:]} against MACs"),
    )


def _dense_layers(dense: float, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    row = {"score": dense, "macs_share": 1.0, "left": 0.0, "text": f"dense {score_number(dense)}"}
    base = alt.Chart(style.values(pl.DataFrame([row])))
    rule = base.mark_rule(color=style.DENSE, strokeDash=[2, 3], strokeWidth=1).encode(y=y)
    point = base.mark_point(shape="diamond", color=style.DENSE, filled=True, opacity=1, size=110, clip=False)
    text = base.mark_text(align="left", baseline="bottom", dx=5, dy=-3, fontSize=11, color=style.DENSE)
    return [rule, point.encode(x=x, y=y), text.encode(x=alt.X("left:Q"), y=y, text="text:N")]
