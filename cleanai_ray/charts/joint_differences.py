"""Differences of all methods from one reference over several runs, per ratio or budget: a forest plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import altair as alt

from cleanai_ray.analysis.joint.answers import JointRow, interval_text
from cleanai_ray.analysis.joint.difference import LIKE_THESE, THESE
from cleanai_ray.analysis.numbers import signed
from cleanai_ray.charts import style
from cleanai_ray.charts.forest import ForestAxis

if TYPE_CHECKING:
    from altair.typing import ChartType

_TEXT = 70
"""Room for the numbers at the right, in pixels."""


def joint_differences(rows: Sequence[JointRow], reference: str) -> ChartType | None:
    """Return the chart of differences from a reference; None where there is none.

    Args:
        rows: A row per ratio or budget and method, whose intervals hold at once; the method is their subject.
        reference: The method that the differences are from.
    """
    if not rows:
        return None
    names = sorted({row.subject for row in rows})
    low, high = _axis(rows)
    label_width = style.CHARACTER * max(len(name) for name in names) + 14
    width = style.WIDTH - label_width - 12
    axis = ForestAxis(low=low, high=high, width=width, text=_TEXT, labels=names)
    panels = []
    for amount in dict.fromkeys(row.amount for row in rows):
        title = alt.TitleParams(amount, fontSize=11.5, offset=5, anchor="start", frame="group")
        panel = _panel([row for row in rows if row.amount == amount], axis)
        panels.append(panel.properties(width=width, height=alt.Step(17), title=title))
    subtitle = [
        "Thick: 95 % interval for other trainings of these networks, draws and images; thin: for networks like these",
        "All hold at once. Filled: beyond doubt; hollow: cannot tell. Small: each network. Clipped at the edges.",
    ]
    title = alt.TitleParams(f"Differences from {reference}, in points of top-1", subtitle=subtitle)
    return alt.vconcat(*panels, spacing=8).properties(title=title)


def _axis(rows: Sequence[JointRow]) -> tuple[float, float]:
    """Return the ends of the axis: all effects and networks, and intervals as far as three times these reach."""
    marks = [row.found.effect for row in rows] + [value for row in rows for _, value in row.found.by_network]
    ends = [end for row in rows for end in row.found.interval(THESE) or row.found.interval(LIKE_THESE) or ()]
    low, high = min([0.0, *marks]), max([0.0, *marks])
    room = 2 * max(high - low, 0.2)
    low, high = max(min([low, *ends]), low - room), min(max([high, *ends]), high + room)
    margin = 0.04 * (high - low)
    return low - margin, high + margin


def _row(row: JointRow, axis: tuple[float, float], colour: str) -> dict[str, Any]:
    found = row.found

    def inside(value: float) -> float:
        return min(max(value, axis[0]), axis[1])

    ends: dict[str, float | None] = {}
    for name, scope in (("these", THESE), ("like", LIKE_THESE)):
        interval = found.interval(scope)
        ends[f"{name}_low"] = None if interval is None else inside(interval[0])
        ends[f"{name}_high"] = None if interval is None else inside(interval[1])
    return {
        "name": row.subject,
        "effect": found.effect,
        **ends,
        "these": interval_text(found, THESE),
        "like": interval_text(found, LIKE_THESE),
        "told": "cannot tell" if found.told is None else f"beyond doubt, for {found.told}",
        "is_told": found.told is not None,
        "text": signed(found.effect),
        "colour": colour,
    }


def _panel(rows: Sequence[JointRow], axis: ForestAxis) -> ChartType:
    colours = style.method_colours(list(axis.labels))
    data = alt.Chart(alt.InlineData(values=[_row(row, (axis.low, axis.high), colours[row.subject]) for row in rows]))
    networks = [
        {"name": row.subject, "network": network, "effect": value, "colour": colours[row.subject]}
        for row in rows
        for network, value in row.found.by_network
    ]
    effect = alt.Tooltip("effect:Q", format="+.2f")
    tooltip = [
        alt.Tooltip("name:N", title="method"),
        effect,
        alt.Tooltip("these:N", title="95 %, these networks"),
        alt.Tooltip("like:N", title="95 %, networks like these"),
        alt.Tooltip("told:N", title="difference"),
    ]
    return alt.layer(
        axis.zero(),
        axis.interval(data, "like_low", "like_high", is_thick=False),
        axis.interval(data, "these_low", "these_high", is_thick=True),
        axis.ticks(networks, ["network:N", effect]),
        *axis.effects(data, tooltip),
    )
