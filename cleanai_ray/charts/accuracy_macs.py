"""Accuracy against MACs: at most six methods with their means and bands, and every other trial in grey."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt
import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import percent, plural, quantity
from cleanai_ray.charts import style
from cleanai_ray.charts.trial_marks import accuracy_bounds, mode_fills, shown_labels, trial_points, trial_tooltip
from cleanai_ray.registry import CHARTS

if TYPE_CHECKING:
    from altair.typing import ChartType

_HEIGHT = 300


@CHARTS.register("accuracy_macs")
def accuracy_macs(study: StudyFrames) -> ChartType | None:
    """Accuracy against MACs, a panel for each mode: the means of a few methods with bands, all else in grey."""
    columns = ["trial_id", "label", "mode", "amount", "macs", "macs_share", "accuracy"]
    frame = study.ok.select(columns).drop_nulls()
    if frame.is_empty():
        return None
    lines = mean_lines(frame, shown_labels(study))
    domain = _domain(study, lines)
    inside = frame.filter(pl.col("accuracy") >= domain[0])
    drawn = style.thinned(inside)
    modes = style.ordered_modes(frame["mode"])
    width = (style.WIDTH - 70 - 30 * (len(modes) - 1)) / len(modes)
    panels = []
    for mode in modes:
        in_mode = pl.col("mode") == mode
        is_first = mode == modes[0]
        panel = _panel(study, drawn.filter(in_mode), lines.filter(in_mode), domain, is_first=is_first)
        title = alt.TitleParams(f"{mode} mode", fontSize=11.5, offset=5, anchor="start", frame="group")
        panels.append(panel.properties(width=width, height=_HEIGHT, title=title))
    title = alt.TitleParams("Accuracy against MACs", subtitle=_subtitle(lines, frame, inside, drawn))
    if len(panels) == 1:
        fit = alt.AutoSizeParams(type="fit-x", contains="padding")
        return panels[0].properties(width=style.WIDTH, autosize=fit, title=title)
    row = alt.hconcat(*panels, spacing=30, bounds="flush")
    shared = row.resolve_scale(stroke="shared", fill="shared", shape="shared", fillOpacity="shared")
    return shared.properties(title=title)


def mean_lines(frame: pl.DataFrame, labels: list[str]) -> pl.DataFrame:
    """Return the mean of each method at each ratio or budget and in each mode, and the range of its trials.

    Args:
        frame: Trials with `label`, `mode`, `amount`, `macs_share` and `accuracy`.
        labels: The methods.

    Returns:
        Rows of label, mode, amount, macs_share (mean), accuracy (mean), low and high (of single trials), count.
    """
    own = frame.filter(pl.col("label").is_in(labels))
    accuracy = pl.col("accuracy")
    found = own.group_by("label", "mode", "amount").agg(
        pl.mean("macs_share"), accuracy.mean(), low=accuracy.min(), high=accuracy.max(), count=pl.len()
    )
    return found.sort("label", "mode", "macs_share", "amount")


def _domain(study: StudyFrames, lines: pl.DataFrame) -> list[float]:
    """Return an axis with room for the means that are not near chance; where all of them are, for all."""
    broken = study.ok.group_by("label", "mode", "amount").agg(pl.col("is_broken").fill_null(False).all())
    kept = lines.join(broken, on=["label", "mode", "amount"], how="left").filter(~pl.col("is_broken"))
    kept = kept if len(kept) else lines
    dense = [] if study.dense.get("accuracy") is None else [study.dense["accuracy"]]
    own = [] if study.best is None else [study.best["accuracy"]]
    return accuracy_bounds([*kept["accuracy"], *kept["high"], *dense, *own])


def _panel(
    study: StudyFrames, drawn: pl.DataFrame, lines: pl.DataFrame, domain: list[float], *, is_first: bool
) -> ChartType:
    shares = [*study.ok["macs_share"].drop_nulls()]
    x = alt.X(
        "macs_share:Q",
        title=_x_title(study.dense),
        axis=alt.Axis(format="%", tickCount=4, labelOverlap="greedy", labelSeparation=8),
        scale=alt.Scale(domain=[max(0.0, min(shares) - 0.06), max(1.0, *shares)], nice=False, zero=False),
    )
    axis = alt.Axis(format="~%", labels=is_first, ticks=is_first)
    scale = alt.Scale(domain=domain, nice=False, zero=False)
    y = alt.Y("accuracy:Q", title="top-1 accuracy" if is_first else None, axis=axis, scale=scale)
    layers = [*_dense_layers(study.dense, x, y), *_line_layers(study, lines, x, y, domain[0])]
    tooltip = [*trial_tooltip(), alt.Tooltip("macs_share:Q", title="MACs kept", format=".1%")]
    layers.append(trial_points(study, drawn, is_first=is_first).encode(x=x, y=y, tooltip=tooltip))
    return alt.layer(*layers)


def _line_layers(study: StudyFrames, lines: pl.DataFrame, x: alt.X, y: alt.Y, floor: float) -> list[alt.Chart]:
    """Return the bands of methods and their means; what is below the axis is cut off."""
    colours = style.label_colours(study.labels)
    layers = []
    for (label,), own in lines.group_by(["label"], maintain_order=True):
        data = alt.Chart(style.values(own.with_columns(pl.col("low").clip(lower_bound=floor))))
        colour = colours[str(label)]
        if own["count"].max() > 1:  # type: ignore[operator]
            band = data.mark_area(color=colour, opacity=0.14, clip=True)
            low = y.copy()
            low.shorthand = "low:Q"
            layers.append(band.encode(x=x, y=low, y2="high:Q"))
        layers.append(data.mark_line(color=colour, strokeWidth=1.8, clip=True).encode(x=x, y=y))
    return layers


def _subtitle(lines: pl.DataFrame, frame: pl.DataFrame, inside: pl.DataFrame, drawn: pl.DataFrame) -> list[str]:
    has_bands = bool(len(lines)) and int(lines["count"].max()) > 1  # type: ignore[arg-type]
    band = "; band: from the worst to the best of its trials" if has_bands else ""
    shown, total = lines["label"].n_unique(), frame["label"].n_unique()
    grey = "; grey: all other trials" if shown < total else ""
    notes = mode_fills(frame["mode"])
    below = len(frame) - len(inside)
    notes += [f"{plural(below, 'trial')} of {len(frame)} below the axis"] if below else []
    return [f"Line: mean of a method{band}{grey}", "; ".join([*notes, *style.thinned_note(len(drawn), len(inside))])]


def _x_title(dense: dict[str, float | None]) -> str:
    absolute = f" (dense: {quantity(dense['macs'])})" if dense.get("macs") else ""
    return f"MACs, share of the dense model{absolute}"


def _dense_layers(dense: dict[str, float | None], x: alt.X, y: alt.Y) -> list[alt.Chart]:
    accuracy = dense.get("accuracy")
    if accuracy is None:
        return []
    left = x["scale"]["domain"][0]
    data = alt.InlineData(
        values=[{"accuracy": accuracy, "macs_share": 1.0, "left": left, "text": f"dense {percent(accuracy)}"}]
    )
    base = alt.Chart(data)
    rule = base.mark_rule(color=style.DENSE, strokeDash=[2, 3], strokeWidth=1).encode(y=y)
    point = base.mark_point(shape="diamond", color=style.DENSE, filled=True, opacity=1, size=110, clip=False)
    text = base.mark_text(align="left", baseline="bottom", dx=5, dy=-3, fontSize=11, color=style.DENSE)
    start = alt.X("left:Q", scale=x["scale"])
    return [rule, point.encode(x=x, y=y), text.encode(x=start, y=y, text="text:N")]
