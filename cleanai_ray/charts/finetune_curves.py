"""Validation accuracy while the pruned models were fine-tuned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt
import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import percent
from cleanai_ray.charts import style
from cleanai_ray.registry import CHARTS
from cleanai_ray.storage.schemas import DENSE

if TYPE_CHECKING:
    from altair.typing import ChartType

_COLUMNS = 3
_DASHES = {"local": ("solid", [1, 0]), "global": ("dashed", [5, 3]), "isomorphic": ("dotted", [1.5, 2])}
_OTHER_DASH = ("dash-dotted", [8, 2, 2, 2])
_TOOLTIP = [
    alt.Tooltip("trial_id:N", title="trial"),
    alt.Tooltip("epoch:Q", title="epoch kept"),
    alt.Tooltip("validation_accuracy:Q", title="validation", format=".2%"),
]


@CHARTS.register("finetune_curves")
def finetune_curves(study: StudyFrames) -> ChartType | None:
    """Validation accuracy per epoch of fine-tuning, one panel per method, with a dot at the epoch that was kept.

    Without a trial of at least two epochs there is no chart.
    """
    trials = study.trials.select("trial_id", "label", "method", "mode", "amount", "amount_order")
    epochs = study.history.drop_nulls(["epoch", "validation_accuracy"]).join(trials, on="trial_id", how="inner")
    if epochs.is_empty() or max(epochs["trial_id"].value_counts()["count"]) < 2:
        return None
    following = pl.col("step").shift(-1).over("trial_id", order_by="epoch")
    epochs = epochs.with_columns(is_cut=(following > pl.col("step")).fill_null(False))
    labels = sorted(set(epochs["label"]))
    last_row = len(labels) - min(_COLUMNS, len(labels))
    panels = [_panel(study, epochs, label, is_last=position >= last_row) for position, label in enumerate(labels)]
    dense = _dense_accuracy(study)
    modes = [f"{_DASHES.get(mode, _OTHER_DASH)[0]}: {mode} mode" for mode in style.ordered_modes(epochs["mode"])]
    cuts = ["ring: pruned further after it"] if epochs["is_cut"].any() else []
    legend = "; ".join(["Dot: the epoch that was kept", *cuts, "thicker: more is removed", *modes])
    lines = [f"{legend}."]
    if max(epochs.group_by("label").agg(pl.n_unique("trial_id"))["trial_id"]) > style.MAX_DRAWN_IN_PANEL:
        lines.append(f"At most {style.MAX_DRAWN_IN_PANEL} trials of each method are drawn, chosen at random.")
    if study.learns_without_labels:
        lines.append("Without labels: agreement with the dense model on images held back.")
    if dense is not None:
        lines.append(f"Dotted line: the dense model on the same validation samples, {percent(dense)}.")
    return alt.concat(*panels, columns=min(_COLUMNS, len(panels)), spacing=14).properties(
        title=alt.TitleParams("Fine-tuning", subtitle=lines)
    )


def _dense_accuracy(study: StudyFrames) -> float | None:
    if study.learns_without_labels:
        return None
    dense = study.history.filter(pl.col("trial_id") == DENSE)
    kept = dense.filter(pl.col("is_best").fill_null(False))["validation_accuracy"].drop_nulls()
    return kept[-1] if len(kept) else None


def _panel(study: StudyFrames, epochs: pl.DataFrame, label: str, *, is_last: bool) -> ChartType:
    frame = style.thinned(epochs.filter(pl.col("label") == label), style.MAX_DRAWN_IN_PANEL)
    frame = frame.sort("trial_id", "epoch")
    found = epochs["validation_accuracy"]
    dense = _dense_accuracy(study)
    low, high = min(found), max(*found, dense or 0.0)
    margin = 0.05 * (high - low) + 0.002
    x = alt.X(
        "epoch:Q",
        title="epoch" if is_last else None,
        scale=alt.Scale(domain=[1, max(2, *epochs["epoch"])], nice=False),
        axis=alt.Axis(values=_whole_ticks(max(2, *epochs["epoch"])), format="d", grid=False),
    )
    y = alt.Y(
        "validation_accuracy:Q",
        title=None,
        scale=alt.Scale(domain=[max(0.0, low - margin), high + margin], nice=False, zero=False),
        axis=alt.Axis(format="~%", tickCount=5),
    )
    colour = style.label_colours(study.labels)[label]
    base = alt.Chart(
        style.values(
            frame.select("trial_id", "epoch", "validation_accuracy", "mode", "amount_order", "is_best", "is_cut")
        )
    )
    line = base.mark_line(color=colour).encode(
        x=x,
        y=y,
        detail="trial_id:N",
        tooltip=alt.Tooltip("trial_id:N", title="trial"),
        strokeDash=alt.StrokeDash("mode:N", scale=_dash_scale(epochs), legend=None),
        strokeWidth=alt.StrokeWidth("amount_order:O", scale=_width_scale(epochs), legend=None),
    )
    best = base.transform_filter("datum.is_best").mark_point(color=colour, filled=True, size=34, opacity=1)
    cut = base.transform_filter("datum.is_cut").mark_point(color=colour, filled=False, size=110, opacity=1)
    cuts = [cut.encode(x=x, y=y)] if any(epochs["is_cut"]) else []
    layers: list[alt.Chart] = [line, best.encode(x=x, y=y, tooltip=_TOOLTIP), *cuts]
    if dense is not None:
        rule = alt.Chart(alt.InlineData(values=[{"validation_accuracy": dense}]))
        layers.insert(0, rule.mark_rule(color=style.DENSE, strokeDash=[2, 3]).encode(y=y))
    num_panels = min(_COLUMNS, epochs["label"].n_unique())
    width = (style.WIDTH - 8 - 36 * num_panels - 14 * (num_panels - 1)) / num_panels
    return alt.layer(*layers).properties(
        width=width,
        height=105 if num_panels == _COLUMNS else 220,
        title=alt.TitleParams(label, fontSize=11.5, offset=5),
    )


def _whole_ticks(last: int) -> list[int]:
    """Return the first epoch and at most six others, evenly spaced."""
    step = -(-(last - 1) // 6)
    return list(range(1, last + 1, step))


def _dash_scale(epochs: pl.DataFrame) -> alt.Scale:
    return style.scale({mode: _DASHES.get(mode, _OTHER_DASH)[1] for mode in style.ordered_modes(epochs["mode"])})


def _width_scale(epochs: pl.DataFrame) -> alt.Scale:
    orders = sorted(set(epochs["amount_order"]))
    widths = [1.0 + 1.4 * position / max(1, len(orders) - 1) for position in range(len(orders))]
    return alt.Scale(domain=orders, range=widths)
