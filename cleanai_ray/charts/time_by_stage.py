"""The time of all trials, by method and stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt
import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import plural
from cleanai_ray.charts import style
from cleanai_ray.registry import CHARTS
from cleanai_ray.storage.durations import format_seconds

if TYPE_CHECKING:
    from altair.typing import ChartType

_STAGES = {
    "scoring and pruning": ("seconds_prune", "#332288"),
    "repair": ("seconds_repair", "#0072b2"),
    "fine-tuning": ("seconds_finetune", "#e69f00"),
    "quantisation": ("seconds_quantize", "#cc79a7"),
    "evaluation": ("seconds_evaluate", "#c3cad1"),
}


_TEXT = 80
"""Width of a duration behind the longest bar, in pixels."""


@CHARTS.register("time_by_stage")
def time_by_stage(study: StudyFrames) -> ChartType | None:
    """Time that the trials of each method took, added up by stage."""
    sums = [pl.col(column).sum().alias(stage) for stage, (column, _) in _STAGES.items()]
    wide = study.trials.group_by("label", maintain_order=True).agg(*sums)
    frame = wide.unpivot(index="label", variable_name="stage", value_name="seconds").filter(pl.col("seconds") > 0)
    if frame.is_empty():
        return None
    totals = frame.group_by("label").agg(pl.sum("seconds")).sort(["seconds", "label"], descending=[True, False])
    order = totals["label"].to_list()
    longest = float(totals["seconds"][0])
    unit, factor = ("hours", 3600) if longest > 7200 else ("minutes", 60) if longest > 120 else ("seconds", 1)
    rank = {stage: place for place, stage in enumerate(_STAGES)}
    data = frame.with_columns(
        (pl.col("seconds") / factor).alias("time"), pl.col("stage").replace_strict(rank).alias("place")
    )
    stages = [stage for stage in _STAGES if stage in set(frame["stage"])]
    y = alt.Y("label:N", sort=order, title=None, axis=alt.Axis(ticks=False, domain=False, labelPadding=8))
    width = style.WIDTH - min(260.0, style.CHARACTER * max(map(len, order))) - 20
    scale = alt.Scale(domain=[0, longest / factor / (1 - _TEXT / width)], nice=False)
    bars = (
        alt.Chart(style.values(data))
        .mark_bar(height={"band": 0.65}, stroke="white", strokeWidth=0.6)
        .encode(
            x=alt.X("time:Q", stack="zero", title=unit, scale=scale),
            y=y,
            color=alt.Color(
                "stage:N",
                scale=style.scale({stage: _STAGES[stage][1] for stage in stages}),
                legend=alt.Legend(title=None, orient="bottom"),
            ),
            order=alt.Order("place:Q"),
        )
    )
    texts = totals.with_columns(
        (pl.col("seconds") / factor).alias("end"),
        pl.col("seconds").map_elements(format_seconds, pl.String).alias("text"),
    )
    labels = (
        alt.Chart(style.values(texts))
        .mark_text(align="left", dx=6, fontSize=10, color=style.INK)
        .encode(x=alt.X("end:Q", scale=scale), y=y, text="text:N")
    )
    return alt.layer(bars, labels).properties(
        width=style.WIDTH,
        height=alt.Step(24),
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
        title=alt.TitleParams("Time spent by stage", subtitle=[_subtitle(study, totals)]),
    )


def _subtitle(study: StudyFrames, totals: pl.DataFrame) -> str:
    return (
        f"Sum over {plural(len(study.trials), 'trial')}: {format_seconds(float(totals['seconds'].sum()))} of trial time"
    )
