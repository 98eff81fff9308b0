"""The common parts of charts with one mark per trial: points, legend, tooltip and an axis of accuracies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import altair as alt
import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.charts import style

_LEGEND, _SYMBOL = style.WIDTH - 50, 34
"""Width of a legend below a chart, and of a label's symbol with the gaps around it, in pixels."""

_FILLS = {"local": "filled", "global": "hollow", "isomorphic": "half filled"}


def trial_points(study: StudyFrames, frame: pl.DataFrame) -> alt.Chart:
    """Return one point per trial in its method's colour and shape; a click on the legend dims all other methods.

    Args:
        study: Its methods have the same colours in every chart.
        frame: Rows with `label`, `mode` and the columns of later encodings.
    """
    labels = sorted(set(frame["label"]))
    columns = max(1, min(4, int(_LEGEND / (_SYMBOL + style.CHARACTER * max(map(len, labels))))))
    legend = alt.Legend(title="method", orient="bottom", columns=columns, labelLimit=_LEGEND / columns - _SYMBOL)
    colour = style.scale(style.label_colours(study.labels), labels)
    shapes = style.scale(style.label_shapes(study.labels), labels)
    chosen = alt.selection_point(name="method", fields=["label"], bind="legend")
    points = alt.Chart(style.values(frame)).mark_point(size=62, strokeWidth=1.5, clip=False)
    return points.add_params(chosen).encode(
        stroke=alt.Stroke("label:N", scale=colour, legend=legend),
        fill=alt.Fill("label:N", scale=colour, legend=None),
        shape=alt.Shape("label:N", scale=shapes, legend=legend),
        fillOpacity=alt.FillOpacity("mode:N", scale=style.mode_fill_scale(frame["mode"]), legend=None),
        opacity=alt.condition(chosen, alt.value(1), alt.value(0.08)),
    )


def trial_tooltip() -> list[alt.Tooltip]:
    """Return the tooltip of a trial: its `trial_id`, `label`, `amount`, `mode` and `accuracy`."""
    names = {"trial_id": "trial", "label": "method", "amount": "asked for", "mode": "mode"}
    texts = [alt.Tooltip(f"{field}:N", title=title) for field, title in names.items()]
    return [*texts, alt.Tooltip("accuracy:Q", title="top-1", format=".2%")]


def mode_fills(modes: Iterable[str]) -> list[str]:
    """Return the fill of each mode, in words."""
    return [f"{_FILLS.get(mode, 'pale')}: {mode} mode" for mode in style.ordered_modes(modes)]


def accuracy_bounds(accuracies: Sequence[float]) -> list[float]:
    """Return the ends of an axis of accuracies, somewhat wider than they are and within [0, 1]."""
    low, high = min(accuracies), max(accuracies)
    margin = max(0.08 * (high - low), 0.004)
    return [max(0.0, low - margin), min(1.0, high + margin)]
