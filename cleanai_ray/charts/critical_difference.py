"""Mean ranks of the methods over all cells, with the critical difference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt

from cleanai_ray.analysis.average_ranks import average_ranks
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import p_text, plural
from cleanai_ray.charts import style
from cleanai_ray.registry import CHARTS

if TYPE_CHECKING:
    from altair.typing import ChartType


@CHARTS.register("critical_difference")
def critical_difference(study: StudyFrames) -> ChartType | None:
    """Mean rank of every method over the cells that all share, with bars as wide as Nemenyi's critical difference.

    There is none where no two methods differ by it: a ranking would be read into what may be chance.
    """
    found = average_ranks(study)
    if found is None or found.ranks[-1] - found.ranks[0] <= found.critical_difference:
        return None
    half = found.critical_difference / 2
    colours, shapes = style.label_colours(study.labels), style.label_shapes(study.labels)
    rows = [
        {"label": label, "rank": rank, "low": rank - half, "high": rank + half, "text": f"{rank:.1f}"}
        for label, rank in zip(found.labels, found.ranks, strict=True)
    ]
    scale = alt.Scale(domain=[found.ranks[0] - half, found.ranks[-1] + half], nice=False)
    ticks = list(range(1, len(rows) + 1))
    axis = alt.Axis(values=ticks, format="d", labelOverlap=True)
    x = alt.X("rank:Q", title="mean rank, 1 is the best", scale=scale, axis=axis)
    order = list(found.labels)
    y = alt.Y("label:N", sort=order, title=None, axis=alt.Axis(ticks=False, domain=False, labelPadding=8))
    colour = alt.Color("label:N", scale=style.scale(colours, order), legend=None)
    base = alt.Chart(alt.InlineData(values=rows))
    bars = base.mark_rule(strokeWidth=3, opacity=0.45).encode(x=alt.X("low:Q", scale=scale), x2="high:Q", y=y)
    points = base.mark_point(filled=True, size=80, opacity=1).encode(
        x=x, y=y, color=colour, shape=alt.Shape("label:N", scale=style.scale(shapes, order), legend=None)
    )
    texts = base.mark_text(dy=-10, fontSize=10, color=style.INK).encode(x=x, y=y, text="text:N")
    subtitle = [
        f"Methods whose bars do not overlap differ (Nemenyi, critical difference {found.critical_difference:.1f})",
        f"Over {plural(found.num_cells, 'cell')} of ratio or budget, mode and steps; test that all methods rank alike: "
        f"{p_text(found.p_value)} (Friedman)",
    ]
    return alt.layer(bars.encode(color=colour), points, texts).properties(
        width=style.WIDTH,
        height=alt.Step(30 if len(rows) <= 16 else 22),
        autosize=alt.AutoSizeParams(type="fit-x", contains="padding"),
        title=alt.TitleParams("Mean rank of the methods", subtitle=subtitle),
    )
