"""Accuracy by method, for every ratio or budget and every mode, after each stage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt
import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import percent
from cleanai_ray.charts import style
from cleanai_ray.charts.trial_marks import trial_tooltip
from cleanai_ray.registry import CHARTS

if TYPE_CHECKING:
    from altair.typing import ChartType

_KEYS = ["amount", "amount_order", "mode", "label"]


@CHARTS.register("accuracy_by_method")
def accuracy_by_method(study: StudyFrames) -> ChartType | None:
    """Accuracy by method at each ratio or budget, modes side by side, before and after repair and fine-tuning."""
    if study.ok.is_empty():
        return None
    order = study.ok.group_by("label").agg(pl.mean("accuracy")).sort(["accuracy", "label"], descending=[True, False])
    labels = order["label"].to_list()
    modes = sorted(set(study.ok["mode"]), key=lambda name: (name != "local", name))
    amounts = study.ok.sort("amount_order")["amount"].unique(maintain_order=True).to_list()
    step = 15 if len(amounts) * len(labels) <= 45 else 12
    label_width = min(230.0, style.CHARACTER * max(len(label) for label in labels)) + 14
    panel_width = (style.WIDTH - label_width - 16 * (len(modes) - 1) - 12) / len(modes)
    domain = _domain(study)
    rows = []
    for amount in amounts:
        panels = []
        for mode in modes:
            cell = study.ok.filter((pl.col("amount") == amount) & (pl.col("mode") == mode))
            is_last = amount == amounts[-1]
            panel = _panel(study, cell, labels, domain, show_labels=mode == modes[0], show_axis=is_last)
            title = f"{amount}, {mode}"
            panels.append(
                panel.properties(
                    width=panel_width,
                    height=alt.Step(step),
                    title=alt.TitleParams(title, fontSize=11.5, offset=5, anchor="start", frame="group"),
                )
            )
        rows.append(alt.hconcat(*panels, spacing=16, bounds="flush"))
    return alt.vconcat(*rows, spacing=12).properties(
        title=alt.TitleParams("Accuracy by method", subtitle=_subtitle(study)),
    )


def _subtitle(study: StudyFrames) -> list[str]:
    dense = study.dense.get("accuracy")
    reference = "" if dense is None else f"; dotted line: dense, {percent(dense)}"
    stages = "Filled: final accuracy; hollow: after pruning, before repair and fine-tuning"
    drawn = sum(len(style.thinned(cell, style.MAX_DRAWN_IN_PANEL)) for _, cell in study.ok.group_by("amount", "mode"))
    return [
        (stages if _has_stages(study.ok) else "Mark: a trial") + reference,
        "; ".join(["Number: mean final accuracy in per cent", *style.thinned_note(drawn, len(study.ok))]),
    ]


def _domain(study: StudyFrames) -> list[float]:
    columns = ["accuracy", "accuracy_pruned"] if _has_stages(study.ok) else ["accuracy"]
    found = [value for name in columns for value in study.ok[name].drop_nulls()]
    found += [] if study.dense.get("accuracy") is None else [study.dense["accuracy"]]
    low, high = min(found), max(found)
    margin = max(0.04 * (high - low), 0.004)
    room_for_text = 0.17 * (high - low + 2 * margin)
    return [max(0.0, low - margin), high + margin + room_for_text]


def _written(accuracy: float) -> str:
    return f"{100 * accuracy:.1f}"


def _has_stages(frame: pl.DataFrame) -> bool:
    return bool(frame["accuracy_repaired"].count() or frame["accuracy_finetuned"].count())


def _panel(
    study: StudyFrames,
    cell: pl.DataFrame,
    labels: list[str],
    domain: list[float],
    *,
    show_labels: bool,
    show_axis: bool,
) -> ChartType:
    axis = alt.Axis(format="~%", tickCount=4, labels=show_axis, ticks=show_axis, domain=show_axis)
    x_scale = alt.Scale(domain=domain, nice=False, zero=False)
    x = alt.X("accuracy:Q", scale=x_scale, axis=axis, title="top-1 accuracy" if show_axis else None)
    y_axis = alt.Axis(labels=show_labels, ticks=False, domain=False, grid=True, labelPadding=6)
    y = alt.Y("label:N", sort=labels, scale=alt.Scale(domain=labels), axis=y_axis, title=None)
    colour = alt.Color("label:N", scale=style.scale(style.label_colours(study.labels), labels), legend=None)
    shape = alt.Shape("label:N", scale=style.scale(style.label_shapes(study.labels), labels), legend=None)
    drawn = style.thinned(cell, style.MAX_DRAWN_IN_PANEL)
    data = alt.Chart(style.values(drawn.select("trial_id", "label", "amount", "mode", "accuracy", "accuracy_pruned")))
    layers: list[alt.Chart] = []
    if study.dense.get("accuracy") is not None:
        dense = alt.Chart(alt.InlineData(values=[{"accuracy": study.dense["accuracy"]}]))
        layers.append(dense.mark_rule(color=style.DENSE, strokeDash=[2, 3]).encode(x=x))
    if _has_stages(cell):
        staged = data.transform_filter("datum.accuracy_pruned != null")
        start = alt.X("accuracy_pruned:Q", scale=x_scale, axis=axis, title="top-1 accuracy" if show_axis else None)
        layers.append(
            staged.mark_rule(strokeWidth=1.4, opacity=0.55).encode(x=start, x2="accuracy:Q", y=y, color=colour)
        )
        hollow = staged.mark_point(size=34, strokeWidth=1.3, fill="white", opacity=1)
        layers.append(hollow.encode(x=start, y=y, color=colour, shape=shape))
    mean = cell.group_by("label", maintain_order=True).agg(pl.mean("accuracy"))
    written = mean.with_columns(pl.col("accuracy").map_elements(_written, return_dtype=pl.String).alias("text"))
    text = alt.Chart(style.values(written)).mark_text(align="right", dx=0, fontSize=10, color=style.INK)
    layers.append(text.encode(x=alt.XDatum(domain[1], scale=x_scale), y=y, text="text:N"))
    solid = data.mark_point(size=58, filled=True, opacity=1)
    tooltip = [*trial_tooltip(), alt.Tooltip("accuracy_pruned:Q", title="after pruning", format=".2%")]
    layers.append(solid.encode(x=x, y=y, color=colour, shape=shape, tooltip=tooltip))
    return alt.layer(*layers)
