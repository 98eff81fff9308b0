"""Agreement of methods on the channels to remove."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt
import numpy as np
import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.removed_channels import correlation, removed_channels
from cleanai_ray.charts import style
from cleanai_ray.registry import CHARTS

if TYPE_CHECKING:
    from altair.typing import ChartType

_CELL = ["amount", "mode", "steps", "seed", "calibration_samples", "calibration_seed"]
_MOST_CELLS = 8


@CHARTS.register("channel_overlap")
def channel_overlap(study: StudyFrames) -> ChartType | None:
    """Agreement of two methods on the channels to remove in one cell: 1 is the same, 0 no more than by chance."""
    found = overlap_of_methods(study)
    if found is None:
        return None
    labels, matrix = found
    rows = [
        {"first": first, "second": second, "value": float(matrix[row, column]), "text": _write(matrix[row, column])}
        for row, first in enumerate(labels)
        for column, second in enumerate(labels)
        if row > column and np.isfinite(matrix[row, column])
    ]
    if not rows:
        return None
    base = alt.Chart(alt.InlineData(values=rows))
    below = alt.Axis(labelAngle=-40, ticks=False, domain=False)
    x = alt.X("second:N", sort=labels, title=None, axis=below)
    y = alt.Y("first:N", sort=labels, title=None, axis=alt.Axis(ticks=False, domain=False))
    colour = alt.Color(
        "value:Q",
        scale=alt.Scale(scheme="blues", domain=[0, 1], clamp=True),
        legend=alt.Legend(title="agreement", gradientLength=120),
    )
    size = max(9, min(40, 350 // len(labels)))
    layers = [base.mark_rect(stroke="white").encode(x=x, y=y, color=colour)]
    if len(labels) <= 16:
        ink = alt.condition("datum.value > 0.55", alt.value("white"), alt.value(style.CELL_INK))
        layers.append(base.mark_text(fontSize=9).encode(x=x, y=y, text="text:N", color=ink))
    subtitle = "Correlation of removed or kept, mean over groups of layers and cells; 0: no more than by chance"
    return alt.layer(*layers).properties(
        width=alt.Step(size),
        height=alt.Step(min(size, 26)),
        title=alt.TitleParams("Do methods remove the same channels?", subtitle=[subtitle]),
    )


def _write(value: float) -> str:
    return f"{round(float(value), 2) + 0.0:.2f}".replace("-", "\N{MINUS SIGN}")


def overlap_of_methods(study: StudyFrames) -> tuple[list[str], np.ndarray] | None:
    """Return labels and, for each pair, the mean correlation of the channels they remove; NaN without a shared cell.

    Reads at most `_MOST_CELLS` cells: those with the most methods, in the order of the study.
    """
    ok = study.ok.unique(["label", *_CELL], keep="first", maintain_order=True)
    sizes = ok.group_by(_CELL, maintain_order=True).agg(pl.col("trial_id"), pl.col("label"), pl.len())
    cells = sizes.filter(pl.col("len") > 1).sort("len", descending=True, maintain_order=True).head(_MOST_CELLS)
    if cells.is_empty() or study.layers.is_empty():
        return None
    labels = sorted(set(cells["label"].explode()))
    place = {label: index for index, label in enumerate(labels)}
    total, count = np.zeros((2, len(labels), len(labels)))
    for trial_ids, names in cells.select("trial_id", "label").rows():
        rows, columns = np.tril_indices(len(names), -1)
        at = np.array([place[name] for name in names])
        for removed in removed_channels(study, trial_ids).values():
            values = correlation(removed[rows], removed[columns])
            known = np.isfinite(values)
            pairs = np.sort(np.stack([at[rows], at[columns]]), axis=0)[:, known]
            np.add.at(total, (pairs[1], pairs[0]), values[known])
            np.add.at(count, (pairs[1], pairs[0]), 1)
    if not count.any():
        return None
    return labels, np.where(count > 0, total / np.maximum(count, 1), np.nan)
