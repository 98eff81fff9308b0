"""Accuracy on the images that decide against that on the images that decide nothing, a point per configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt
import polars as pl

from cleanai_ray.analysis.chosen import CONFIGURATION
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import plural, points
from cleanai_ray.charts import style
from cleanai_ray.charts.trial_marks import accuracy_bounds, trial_points, trial_tooltip
from cleanai_ray.registry import CHARTS

if TYPE_CHECKING:
    from altair.typing import ChartType

_HEIGHT = 320


@CHARTS.register("selection_test")
def selection_test(study: StudyFrames) -> ChartType | None:
    """Mean accuracy of each configuration on the images that decide, against its mean on the test images."""
    choice = study.choice
    if choice.trial is None or not choice.has_test_images:
        return None
    frame = configurations(study)
    chosen = _chosen(frame, choice.trial["trial_id"])
    clear = frame.filter(~pl.col("is_broken"))
    shown = clear if len(clear) else frame
    dense = study.ok.select(
        pl.mean("accuracy_validation_dense").alias("deciding"), pl.mean("accuracy_test_dense").alias("accuracy")
    ).drop_nulls()
    domain = accuracy_bounds([*shown["deciding"], *shown["accuracy"], *dense["deciding"], *dense["accuracy"]])
    inside = frame.filter(pl.min_horizontal("deciding", "accuracy") >= domain[0]).drop("trials")
    scale, axis = alt.Scale(domain=domain, nice=False, zero=False), alt.Axis(format="~%", tickCount=7)
    x = alt.X("deciding:Q", title="top-1 on the images that decide", scale=scale, axis=axis)
    y = alt.Y("accuracy:Q", title="top-1 on the test images, which decide nothing", scale=scale, axis=axis)
    ends = [{"deciding": end, "accuracy": end} for end in domain]
    equal = alt.Chart(alt.InlineData(values=ends)).mark_line(color=style.DENSE, strokeDash=[2, 3], strokeWidth=1)
    ring = alt.Chart(style.values(chosen.drop("trials"))).mark_point(size=230, strokeWidth=1.8, color=style.ALARM)
    tooltip = [*trial_tooltip(), alt.Tooltip("deciding:Q", title="deciding", format=".2%")]
    drawn = style.thinned(inside)
    layers = [equal.encode(x=x, y=y), trial_points(study, drawn).encode(x=x, y=y, tooltip=tooltip)]
    layers += [ring.encode(x=x, y=y), *_dense_layers(dense, x, y)]
    return alt.layer(*layers).properties(
        width=style.WIDTH,
        height=_HEIGHT,
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
        title=alt.TitleParams("Selection against test", subtitle=_subtitle(frame, chosen, inside, dense)),
    )


def configurations(study: StudyFrames) -> pl.DataFrame:
    """Return a row per configuration with its mean accuracies over seeds and draws.

    Returns:
        Columns: label, mode, amount, deciding and accuracy (means on the images that decide, and on the test images),
        is_broken (all of its trials are near chance), trials (their names), trial_id (the first of them).
    """
    keys = list(dict.fromkeys([*CONFIGURATION, "mode", "amount"]))
    return (
        study.ok.sort("trial_id")
        .group_by(keys, maintain_order=True)
        .agg(
            pl.mean("accuracy_validation").alias("deciding"),
            pl.mean("accuracy_test").alias("accuracy"),
            pl.col("is_broken").fill_null(False).all(),
            pl.col("trial_id").alias("trials"),
            pl.first("trial_id"),
        )
        .select("label", "mode", "amount", "deciding", "accuracy", "is_broken", "trials", "trial_id")
    )


def _chosen(frame: pl.DataFrame, trial_id: str) -> pl.DataFrame:
    return frame.filter(pl.col("trials").list.contains(trial_id))


def _dense_layers(dense: pl.DataFrame, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """The dense model, by which nothing was chosen: its difference is that of the images alone."""
    base = alt.Chart(style.values(dense)).encode(x=x, y=y)
    point = base.mark_point(shape="diamond", filled=True, size=110, color=style.DENSE, opacity=1)
    name = base.mark_text(text="dense", align="right", dx=-9, fontSize=11, color=style.DENSE)
    return [point, name] if len(dense) else []


def _subtitle(frame: pl.DataFrame, chosen: pl.DataFrame, inside: pl.DataFrame, dense: pl.DataFrame) -> list[str]:
    place = {name: 1 + len(frame.filter(pl.col(name) > chosen[name][0])) for name in ("deciding", "accuracy")}
    fall = chosen["accuracy"][0] - chosen["deciding"][0]
    left = len(frame) - len(inside)
    below = f"; {plural(left, 'configuration')} below the axes" if left else ""
    dense_falls = dense["accuracy"] - dense["deciding"]
    return [
        f"A point: the mean of a configuration; dotted: equal on both; {len(frame)} configurations{below}",
        f"Ring: that of the chosen trial, number {place['deciding']} where it is decided and number "
        f"{place['accuracy']} on the test images ({points(fall, 2)})",
        *(f"Dense, by which nothing was chosen: {points(own, 2)}" for own in dense_falls),
    ]
