"""Differences of all methods from one reference, per ratio or budget and mode, with intervals: a forest plot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import altair as alt

from cleanai_ray.analysis.differences import Difference, Differences, find_differences
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import NONE, signed
from cleanai_ray.charts import style
from cleanai_ray.charts.forest import ForestAxis
from cleanai_ray.registry import CHARTS

if TYPE_CHECKING:
    from altair.typing import ChartType

_TEXT = 92
"""Room for the numbers at the right of a panel, in pixels."""


@CHARTS.register("differences")
def differences(study: StudyFrames) -> ChartType | None:
    """Difference of every method from a reference at each ratio or budget and in each mode, with its intervals.

    There is none of a single difference whose interval is not known: a number says it as well.
    """
    found = find_differences(study)
    if found is None or (len(found.rows) == 1 and found.rows[0].found.reach is None):
        return None
    amounts = list(dict.fromkeys(row.amount for row in found.rows))
    modes = list(dict.fromkeys(row.mode for row in found.rows))
    names = sorted({row.name for row in found.rows})
    label_width = min(230.0, style.CHARACTER * max(len(name) for name in names)) + 14
    width = (style.WIDTH - label_width - 16 * (len(modes) - 1) - 12) / len(modes)
    colours = style.method_colours(study.methods)
    lines = []
    is_cut = False
    for amount in amounts:
        panels = []
        rows = [row for row in found.rows if row.amount == amount]
        axis = _axis(rows)
        is_cut |= any(_leaves(row, axis) for row in rows)
        for mode in modes:
            cell = [row for row in found.rows if (row.amount, row.mode) == (amount, mode)]
            of_panel = ForestAxis(
                low=axis[0], high=axis[1], width=width, text=_TEXT, labels=names, has_labels=mode == modes[0]
            )
            panel = _panel(cell, of_panel, colours)
            title = alt.TitleParams(f"{amount}, {mode}", fontSize=11.5, offset=5, anchor="start", frame="group")
            step = 15 if len(amounts) * len(names) <= 30 else 12
            panels.append(panel.properties(width=width, height=alt.Step(step), title=title))
        lines.append(alt.hconcat(*panels, spacing=16, bounds="flush"))
    title = alt.TitleParams(
        f"Differences from {found.reference}, in points of top-1", subtitle=_subtitle(found, is_cut, len(amounts) > 1)
    )
    return alt.vconcat(*lines, spacing=8).properties(title=title)


def _subtitle(found: Differences, is_cut: bool, has_several_axes: bool) -> list[str]:
    known = [row.found for row in found.rows if row.found.reach is not None]
    if not known:
        return ["Without intervals: there are too few draws and seeds, and single images were not kept"]
    unit = {"draws": "draws and seeds", "cells": "cells", "images": "all scored images"}[known[0].unit]
    varied = f"{unit} and all scored images" if known[0].has_images and known[0].unit != "images" else unit
    return [
        f"Thick: 95 % interval of one difference alone, over {varied}; thin: all {len(found.rows)} hold at once",
        f"Filled: differs from {found.reference} beyond doubt, all taken together; hollow: cannot tell",
        "In brackets: the difference from which on one could tell, four times in five",
        *(["A line that ends at the edge of its panel goes on beyond it"] if is_cut else []),
        *(["Each ratio or budget has an axis of its own"] if has_several_axes else []),
    ]


def _axis(rows: Sequence[Difference]) -> tuple[float, float]:
    """Return the ends of the axis: every effect, and of the intervals as much as leaves effects apart."""
    effects = [0.0, *(row.found.effect or 0.0 for row in rows)]
    span = max(max(effects) - min(effects), 1.0)
    alone = [replace(row.found, family=1) for row in rows]
    halves = [(one.high - one.low) / 2 for one in alone if one.low is not None and one.high is not None]
    usual = statistics.median(halves) if halves else 0.0  # so that most intervals are drawn whole
    room = max(0.6 * span, min(1.2 * usual, 4 * span))
    low = min([*effects, *(one.low for one in alone if one.low is not None)])
    high = max([*effects, *(one.high for one in alone if one.high is not None)])
    low, high = max(low, min(effects) - room), min(high, max(effects) + room)
    margin = max(0.04 * (high - low), 0.05)
    return low - margin, high + margin


def _leaves(row: Difference, axis: tuple[float, float]) -> bool:
    """Return whether an interval of a difference leaves the axis."""
    return any(end is not None and not axis[0] <= end <= axis[1] for end in (row.found.low, row.found.high))


def _row(row: Difference, axis: tuple[float, float]) -> dict[str, Any]:
    """Return what is drawn of a difference; intervals end where the axis does."""
    effect, alone = row.found.effect, replace(row.found, family=1)
    assert effect is not None

    def inside(value: float | None) -> float | None:
        return None if value is None else min(max(value, axis[0]), axis[1])

    detectable = row.found.detectable
    least = "" if row.is_told or detectable is None else f" ({detectable:.1f})"
    return {
        "name": row.name,
        "effect": effect,
        "low": inside(alone.low),
        "high": inside(alone.high),
        "lowest": inside(row.found.low),
        "highest": inside(row.found.high),
        "is_told": row.is_told,
        "told": "beyond doubt" if row.is_told else "cannot tell",
        "interval": NONE if alone.low is None else f"{signed(alone.low)} to {signed(alone.high or 0.0)}",
        "together": NONE if row.found.low is None else f"{signed(row.found.low)} to {signed(row.found.high or 0.0)}",
        "pairs": row.found.num_pairs,
        "text": f"{signed(effect, 1)}{least}",
    }


def _panel(cell: Sequence[Difference], axis: ForestAxis, colours: dict[str, str]) -> ChartType:
    """Return the panel of one ratio or budget in one mode."""
    rows = [{**_row(row, (axis.low, axis.high)), "colour": colours[row.method]} for row in cell]
    data = alt.Chart(alt.InlineData(values=rows))
    tooltip = [
        alt.Tooltip("name:N", title="method"),
        alt.Tooltip("effect:Q", format="+.2f"),
        alt.Tooltip("interval:N", title="95 % alone"),
        alt.Tooltip("together:N", title="95 % of all at once"),
        alt.Tooltip("told:N", title="difference"),
        alt.Tooltip("pairs:Q"),
    ]
    return alt.layer(
        axis.zero(),
        axis.interval(data, "lowest", "highest", is_thick=False),
        axis.interval(data, "low", "high", is_thick=True),
        *axis.effects(data, tooltip),
    )
