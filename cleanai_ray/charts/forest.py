"""What forest plots have in common: an axis with room for numbers at its right, and the marks of an effect."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from cleanai_ray.charts import style


@dataclass(frozen=True, kw_only=True)
class ForestAxis:
    """The axis of effects of one panel.

    Attributes:
        low: Where it begins.
        high: The greatest effect, or end of an interval, that it shows.
        width: Width of the panel, in pixels.
        text: Room for the numbers at its right, in pixels.
        labels: Names from top to bottom.
        has_labels: False for a panel whose names stand at the left of another.
    """

    low: float
    high: float
    width: float
    text: int
    labels: Sequence[str]
    has_labels: bool = True

    @property
    def _end(self) -> float:
        return self.low + (self.high - self.low) / max(1 - self.text / self.width, 0.3)

    @property
    def _scale(self) -> alt.Scale:
        return alt.Scale(domain=[self.low, self._end], nice=False, zero=False)

    def x(self, field: str) -> alt.X:
        """Return the place of a field."""
        ticks = alt.Axis(format="+.3~r", values=round_ticks(self.low, self.high), labelFontSize=9.5)
        return alt.X(f"{field}:Q", scale=self._scale, axis=ticks, title=None)

    def y(self) -> alt.Y:
        """Return the line of a row, by its `name`."""
        left = alt.Axis(labels=self.has_labels, ticks=False, domain=False, grid=True, labelPadding=6, labelFontSize=9.5)
        names = list(self.labels)
        return alt.Y("name:N", sort=names, scale=alt.Scale(domain=names), axis=left, title=None)

    def zero(self) -> alt.Chart:
        """Return the line of no effect."""
        rule = alt.Chart(alt.InlineData(values=[{"effect": 0.0}])).mark_rule(color=style.DENSE, strokeDash=[2, 3])
        return rule.encode(x=self.x("effect"))

    def interval(self, data: alt.Chart, low: str, high: str, *, is_thick: bool) -> alt.Chart:
        """Return the lines from one field to another, of rows that have both."""
        known = data.transform_filter(f"datum.{low} != null")
        rule = known.mark_rule(strokeWidth=3.4 if is_thick else 1, opacity=0.55 if is_thick else 0.8)
        return rule.encode(x=self.x(low), x2=f"{high}:Q", y=self.y(), stroke=_STROKE)

    def effects(self, data: alt.Chart, tooltip: list[alt.Tooltip]) -> list[alt.Chart]:
        """Return the points of `effect`, filled where a row `is_told`, and the `text` of each at the right."""
        fill = alt.condition("datum.is_told", alt.Fill("colour:N", scale=None), alt.value("white"))
        points = data.mark_point(size=42, strokeWidth=1.6, opacity=1)
        text = data.mark_text(align="right", fontSize=10, color=style.INK)
        return [
            points.encode(x=self.x("effect"), y=self.y(), stroke=_STROKE, fill=fill, tooltip=tooltip),
            text.encode(x=alt.XDatum(self._end, scale=self._scale), y=self.y(), text="text:N"),
        ]

    def ticks(self, rows: list[dict[str, Any]], tooltip: list[Any]) -> alt.Chart:
        """Return small marks at the `effect` of rows."""
        marks = alt.Chart(alt.InlineData(values=rows)).mark_tick(thickness=1.2, size=9, opacity=0.9)
        return marks.encode(x=self.x("effect"), y=self.y(), stroke=_STROKE, tooltip=tooltip)


_STROKE = alt.Stroke("colour:N", scale=None)


def round_ticks(low: float, high: float) -> list[float]:
    """Return round numbers for at most six steps."""
    steps = (factor * 10.0**power for power in range(-3, 3) for factor in (1, 2, 5))
    step = next(step for step in steps if (high - low) / step <= 6)
    return [round(place * step, 6) for place in range(math.ceil(low / step), math.floor(high / step) + 1)]
