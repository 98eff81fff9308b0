"""Accuracy that the best trial gains or loses in each class, beside that of other methods."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import altair as alt
import polars as pl

from cleanai_ray.analysis.class_changes import classes_of, names_of_classes, numbered
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import points
from cleanai_ray.analysis.score_words import is_counted
from cleanai_ray.charts import style
from cleanai_ray.registry import CHARTS

if TYPE_CHECKING:
    from altair.typing import ChartType

MOST_CLASSES = 25
"""The most classes that are drawn: those that lost most."""


@CHARTS.register("class_change")
def class_change(study: StudyFrames) -> ChartType | None:
    """Accuracy gained or lost in each class with the best trial, the worst first, beside the other methods."""
    best = study.best
    if best is None:
        return None
    names = names_of_classes(study)
    own = classes_of(study, [best["trial_id"]]).drop_nulls(["label", "change", "accuracy"])
    if own.is_empty():
        return None
    shown = (
        own.sort(["change", "label"]).head(MOST_CLASSES).with_columns(_written(counts=is_counted(best)), _name(names))
    )
    order = shown["name"].to_list()
    others = _others(study, best, shown, names)
    scale = _scale([*shown["change"], *others["change"], 0.0])
    axis = alt.Axis(format="+.3~%", values=_ticks([*shown["change"], *others["change"], 0.0]))
    x = alt.X("change:Q", title="top-1 accuracy of the class, pruned minus dense", scale=scale, axis=axis)
    y = alt.Y("name:N", sort=order, title=None, axis=alt.Axis(ticks=False, domain=False, labelPadding=8))
    colour = style.method_colours(study.methods)[best["method"]]
    mean = float((own["change"] * own["num_evaluated"]).sum()) / max(1, int(own["num_evaluated"].sum()))
    bars = alt.Chart(style.values(shown.select("name", "change", "num_evaluated", "text")))
    layers = [
        bars.mark_bar(height={"band": 0.62}, color=colour).encode(x=x, y=y, tooltip=_tooltip()),
        _other_ticks(others, x, y),
        _rule(0.0, scale, [1, 0]),
        _rule(mean, scale, [2, 3]),
        bars.mark_text(align="right", fontSize=10, color=style.INK).encode(
            x=alt.XDatum(scale["domain"][1], scale=scale), y=y, text="text:N"
        ),
    ]
    return alt.layer(*(layer for layer in layers if layer is not None)).properties(
        width=style.WIDTH,
        height=alt.Step(22 if len(order) <= 14 else 17),
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
        title=alt.TitleParams("Change of accuracy, class by class", subtitle=_subtitle(best, own, others, mean)),
    )


def _name(names: dict[int, str]) -> pl.Expr:
    return pl.col("label").map_elements(lambda label: numbered(label, names.get(label)), pl.String).alias("name")


def _written(*, counts: bool) -> pl.Expr:
    """Return both scores and, where answers are counted, of how many images of the class."""
    before, after = ((100 * pl.col(name)).round(1).fill_null(0.0) for name in ("accuracy_dense", "accuracy"))
    if not counts:
        return pl.format("{} \N{RIGHTWARDS ARROW} {} %", before, after).alias("text")
    noun = pl.when(pl.col("num_evaluated") == 1).then(pl.lit("image")).otherwise(pl.lit("images"))
    return pl.format("{} \N{RIGHTWARDS ARROW} {} %, {} {}", before, after, "num_evaluated", noun).alias("text")


def _others(study: StudyFrames, best: dict[str, Any], shown: pl.DataFrame, names: dict[int, str]) -> pl.DataFrame:
    """Return the mean change per class of every other method in the best trial's cell: name, method and change."""
    same = [pl.col(name).eq_missing(pl.lit(best[name])) for name in ("amount", "mode", "steps")]
    rivals = study.ok.filter(*same, pl.col("label") != best["label"]).select("trial_id", method="label")
    classes = classes_of(study, rivals["trial_id"]).filter(pl.col("label").is_in(shown["label"].to_list()))
    classes = classes.drop_nulls("change")
    joined = classes.join(rivals, on="trial_id").with_columns(_name(names))
    return joined.group_by("name", "method").agg(pl.mean("change")).sort("name", "method")


def _scale(changes: list[float]) -> alt.Scale:
    """Return an axis with room for every change, and for the texts at its right."""
    low, high = min(changes), max(changes)
    spread = max(high - low, 0.01)
    return alt.Scale(domain=[low - 0.03 * spread, high + 0.36 * spread], nice=False, zero=False)


def _ticks(changes: list[float]) -> list[float]:
    """Return round numbers for at most seven steps, none of them under the texts at the right."""
    low, high = min(changes), max(changes)
    steps = (factor * 10.0**power for power in range(-4, 1) for factor in (1, 2, 5))
    step = next(step for step in steps if (high - low) / step <= 7)
    return [round(place * step, 6) for place in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _other_ticks(others: pl.DataFrame, x: alt.X, y: alt.Y) -> alt.Chart | None:
    if others.is_empty():
        return None
    ticks = alt.Chart(style.values(others)).mark_tick(thickness=1.4, height={"band": 0.8}, color=style.INK, opacity=0.7)
    return ticks.encode(x=x, y=y, tooltip=[alt.Tooltip("method:N"), *_tooltip()[:2]])


def _rule(value: float, scale: alt.Scale, dash: list[float]) -> alt.Chart:
    line = alt.Chart(alt.InlineData(values=[{"change": value}]))
    return line.mark_rule(color=style.DENSE, strokeDash=dash).encode(x=alt.X("change:Q", scale=scale))


def _tooltip() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("name:N", title="class"),
        alt.Tooltip("change:Q", format="+.2%"),
        alt.Tooltip("num_evaluated:Q", title="images"),
    ]


def _subtitle(best: dict[str, Any], own: pl.DataFrame, others: pl.DataFrame, mean: float) -> list[str]:
    over = "images" if is_counted(best) else "classes"
    count = f"; the {MOST_CLASSES} of {len(own)} classes that lost most" if len(own) > MOST_CLASSES else ""
    lines = [f"Bars: {best['trial_id']}", f"Dotted: mean over the {over}, {points(mean, 2)}{count}"]
    if len(others):
        lines.append("Short vertical lines: other methods at the same ratio or budget, mode and steps, mean over seeds")
    return lines
