"""The common parts of charts with one mark per trial: points, legend, tooltip and an axis of accuracies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import altair as alt
import polars as pl

from cleanai_ray.analysis.differences import reference_of
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.method_ranks import CONTROL
from cleanai_ray.charts import style

_LEGEND, _SYMBOL = style.WIDTH - 50, 34
"""Width of a legend below a chart, and of a label's symbol with the gaps around it, in pixels."""

_FILLS = {"local": "filled", "global": "hollow", "isomorphic": "half filled"}


MOST_SERIES = 6
"""The most methods that a chart draws in colour; more could not be told apart."""


def shown_labels(study: StudyFrames) -> list[str]:
    """Return the methods that charts draw in colour, at most `MOST_SERIES`, each with one of its coverage metrics.

    First that of the chosen trial, the reference and random, then the others by their mean accuracy on the images that
    decide, so that what is shown does not depend on the images that are reported on.
    """
    deciding = pl.coalesce("accuracy_validation", "accuracy")
    means = study.ok.group_by("label", "method").agg(deciding.mean().alias("mean"))
    order = means.sort(["mean", "label"], descending=[True, False]).select("label", "method").rows()
    chosen = [] if study.best is None else [(study.best["label"], study.best["method"])]
    first = [row for name in (reference_of(study), CONTROL) for row in order if row[1] == name]
    shown: dict[str, str] = {}
    for label, method in [*chosen, *first, *order]:
        shown.setdefault(method, label)
    return sorted(list(shown.values())[:MOST_SERIES])


def legend_of(labels: Sequence[str]) -> alt.Legend:
    """Return the legend of methods below a chart, in as many columns as their names leave room for."""
    columns = max(1, min(4, int(_LEGEND / (_SYMBOL + style.CHARACTER * max(map(len, labels))))))
    limit = _LEGEND / columns - _SYMBOL
    return alt.Legend(title="method", orient="bottom", columns=columns, labelLimit=limit, values=list(labels))


def trial_points(study: StudyFrames, frame: pl.DataFrame, *, is_first: bool = True) -> alt.Chart:
    """Return one point per trial; a click on the legend dims all other methods.

    Methods of `shown_labels` have their colour and shape, all others are grey.

    Args:
        study: Its methods have the same colours in every chart.
        frame: Rows with `label`, `mode` and the columns of later encodings.
        is_first: False in the later panels of a chart, which use the selection of the first.
    """
    # Scales of the whole study, so that panels of one chart share them.
    labels, shown = sorted(set(study.ok["label"])), shown_labels(study)
    named = [label for label in shown if label in set(frame["label"])] or shown
    legend = legend_of(named)
    colours, marks = style.label_colours(study.labels), style.label_shapes(study.labels)
    colour = style.scale({label: colours[label] if label in named else style.FAINT for label in labels})
    shapes = style.scale({label: marks[label] if label in named else "circle" for label in labels})
    chosen = alt.selection_point(name="method", fields=["label"], bind="legend")
    # Grey ones first, so that they hide none of the others.
    order = frame.with_columns(pl.col("label").is_in(named).alias("is_named")).sort("is_named", maintain_order=True)
    points = alt.Chart(style.values(order.drop("is_named"))).mark_point(size=62, strokeWidth=1.5, clip=False)
    if is_first:
        points = points.add_params(chosen)
    return points.encode(
        stroke=alt.Stroke("label:N", scale=colour, legend=legend),
        fill=alt.Fill("label:N", scale=colour, legend=None),
        shape=alt.Shape("label:N", scale=shapes, legend=legend),
        fillOpacity=alt.FillOpacity("mode:N", scale=style.mode_fill_scale(study.ok["mode"]), legend=None),
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
