"""Accuracy against measured speed with the intervals of both: at most six methods, and every other trial in grey."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt
import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import milliseconds, percent
from cleanai_ray.charts import style
from cleanai_ray.charts.trial_marks import accuracy_bounds, mode_fills, shown_labels, trial_points, trial_tooltip
from cleanai_ray.registry import CHARTS

if TYPE_CHECKING:
    from altair.typing import ChartType

_HEIGHT = 330

MOST_INTERVALS = 120
"""The most trials that are all drawn with their intervals; beyond, only those of the front: lines hide points."""


def fastest_front(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the trials that no other trial beats, by more speed and at least the accuracy or the other way round.

    Args:
        frame: Trials with `speedup` and `accuracy`.

    Returns:
        The front in order of falling speed-up, one row for trials that are equal in both.
    """
    ordered = frame.sort(["speedup", "accuracy"], descending=True, maintain_order=True)
    best_so_far = pl.col("accuracy").cum_max().shift(1)
    return ordered.filter(best_so_far.is_null() | (pl.col("accuracy") > best_so_far))


@CHARTS.register("accuracy_latency")
def accuracy_latency(study: StudyFrames) -> ChartType | None:
    """Accuracy against the measured speed-up, in the target or at batch 1, with the 95 % intervals of both."""
    frame = _timed(study)
    if frame.is_empty():
        return None
    front = fastest_front(frame)
    drawn = pl.concat([style.thinned(frame), front]).unique("trial_id", maintain_order=True)
    spread = drawn if len(drawn) <= MOST_INTERVALS else front
    dense = study.dense
    x, y = _axes(frame, dense, study.target)
    layers = [*_dense_layers(dense, x, y), *_interval_layers(study, spread, x, y), _front_layer(front, x, y)]
    layers.append(trial_points(study, drawn).encode(x=x, y=y, tooltip=_tooltip()))
    lines = [
        "; ".join(["Line: the trials that no other trial beats in accuracy and speed", *mode_fills(frame["mode"])]),
        "; ".join([*_spread_note(spread, drawn), *_grey_note(study), *style.thinned_note(len(drawn), len(frame))]),
    ]
    return alt.layer(*layers).properties(
        width=style.WIDTH,
        height=_HEIGHT,
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
        title=alt.TitleParams(_title(study), subtitle=[line for line in lines if line]),
    )


def _timed(study: StudyFrames) -> pl.DataFrame:
    frame = study.ok.select(
        "trial_id",
        "label",
        "mode",
        "amount",
        "speedup",
        pl.col("speedup_low").alias("slowest"),
        pl.col("speedup_high").alias("fastest"),
        "accuracy",
        pl.col("accuracy_low").alias("lowest"),
        pl.col("accuracy_high").alias("highest"),
        pl.col("latency_ms").alias("latency"),
        pl.col("latency_ms_dense").alias("latency_dense"),
    )
    return frame.drop_nulls(["speedup", "accuracy"])


def _title(study: StudyFrames) -> str:
    return "Accuracy against measured speed" if study.target is None else f"Accuracy against latency in {study.target}"


def _axes(frame: pl.DataFrame, dense: dict[str, Any], target: str | None) -> tuple[alt.X, alt.Y]:
    """Return the axes; in a target, every tick names the time that its speed-up makes of the dense model's."""
    reference = [] if dense.get("accuracy") is None else [dense["accuracy"]]
    domain = accuracy_bounds([*frame["accuracy"], *reference])
    least = min(0.9, 0.95 * float(frame["speedup"].min()))  # type: ignore[arg-type]
    most = max(1.1, 1.05 * float(frame["speedup"].max()))  # type: ignore[arg-type]
    middle = frame["latency_dense"].median()
    timed = f" (dense: {milliseconds(float(middle))})" if isinstance(middle, float) else ""
    ticks: dict[str, Any] = {"format": ".3~g"}
    if target is not None and isinstance(middle, float):
        ticks = {"labelExpr": f"[format(datum.value, '.3~g'), format({middle!r} / datum.value, '.3~g') + ' ms']"}
        timed = f", and the time it makes of the dense model's {milliseconds(middle)}"
    where = "" if target is not None else " at batch 1"
    x = alt.X(
        "speedup:Q",
        title=f"speed-up{where}, dense over pruned time{timed}",
        axis=alt.Axis(tickCount=10 if target is None else 6, **ticks),
        scale=alt.Scale(domain=[least, most], nice=False, zero=False),
    )
    scale = alt.Scale(domain=domain, nice=False, zero=False)
    return x, alt.Y("accuracy:Q", title="top-1 accuracy", axis=alt.Axis(format="~%"), scale=scale)


def _dense_layers(dense: dict[str, Any], x: alt.X, y: alt.Y) -> list[alt.Chart]:
    rows = [{"speedup": 1.0, "accuracy": dense.get("accuracy"), "text": "dense speed"}]
    base = alt.Chart(alt.InlineData(values=rows))
    upright = base.mark_rule(color=style.DENSE, strokeDash=[2, 3], strokeWidth=1).encode(x=x)
    if dense.get("accuracy") is None:
        return [upright]
    level = base.mark_rule(color=style.DENSE, strokeDash=[2, 3], strokeWidth=1).encode(y=y)
    point = base.mark_point(shape="diamond", color=style.DENSE, filled=True, opacity=1, size=110, clip=False)
    words = alt.Chart(alt.InlineData(values=[{**rows[0], "text": f"dense {percent(dense['accuracy'])}"}]))
    text = words.mark_text(align="right", baseline="bottom", dx=-3, dy=-3, fontSize=11, color=style.DENSE)
    right = alt.XDatum(x["scale"]["domain"][1], scale=x["scale"])
    return [upright, level, point.encode(x=x, y=y), text.encode(x=right, y=y, text="text:N")]


def _interval_layers(study: StudyFrames, frame: pl.DataFrame, x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """Return the intervals as thin lines; `clip` keeps them inside the axes, which are set by the points alone."""
    # Colours as values and not by a scale, whose missing legend would be missing from the points as well.
    shown = shown_labels(study)
    known = style.label_colours(study.labels).items()
    colours = {name: colour if name in shown else style.FAINT for name, colour in known}
    frame = frame.with_columns(pl.col("label").replace_strict(colours, return_dtype=pl.String).alias("colour"))
    colour = alt.Stroke("colour:N", scale=None)
    layers = []
    across, upright = frame.drop_nulls(["slowest", "fastest"]), frame.drop_nulls(["lowest", "highest"])
    if len(across):
        lines = alt.Chart(style.values(across.select("label", "colour", "slowest", "fastest", "accuracy")))
        rule = lines.mark_rule(strokeWidth=1, opacity=0.55, clip=True)
        layers.append(rule.encode(x=_at(x, "slowest"), x2="fastest:Q", y=y, stroke=colour))
    if len(upright):
        lines = alt.Chart(style.values(upright.select("label", "colour", "speedup", "lowest", "highest")))
        rule = lines.mark_rule(strokeWidth=1, opacity=0.55, clip=True)
        layers.append(rule.encode(x=x, y=_at(y, "lowest"), y2="highest:Q", stroke=colour))
    return layers


def _grey_note(study: StudyFrames) -> list[str]:
    return ["grey: all other methods"] if len(set(study.ok["label"])) > len(shown_labels(study)) else []


def _at(axis: Any, field: str) -> Any:
    own = axis.copy()
    own.shorthand = f"{field}:Q"
    return own


def _front_layer(front: pl.DataFrame, x: alt.X, y: alt.Y) -> alt.Chart:
    line = alt.Chart(style.values(front.sort("speedup").select("speedup", "accuracy")))
    return line.mark_line(interpolate="step-before", color=style.MUTED, strokeWidth=1.3).encode(x=x, y=y)


def _tooltip() -> list[alt.Tooltip]:
    speed = alt.Tooltip("speedup:Q", title="speed-up", format=".2f")
    interval = [alt.Tooltip(f"{name}:Q", title=f"speed-up, {name}", format=".2f") for name in ("slowest", "fastest")]
    named = (("latency", "ms, median"), ("latency_dense", "ms of dense, in turns with it"))
    times = [alt.Tooltip(f"{name}:Q", title=title, format=".3~g") for name, title in named]
    return [*trial_tooltip(), speed, *interval, *times]


def _spread_note(spread: pl.DataFrame, drawn: pl.DataFrame) -> list[str]:
    if not (spread["slowest"].count() or spread["lowest"].count()):
        return []
    whose = "" if len(spread) == len(drawn) else " of the trials on the line"
    return [f"Thin lines: 95 % intervals{whose}"]
