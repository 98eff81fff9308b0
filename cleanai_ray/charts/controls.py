"""Controls and pruned models: accuracy against cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import altair as alt

from cleanai_ray.analysis.controls import beside_controls
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import percent
from cleanai_ray.charts import style
from cleanai_ray.charts.trial_marks import accuracy_bounds
from cleanai_ray.registry import CHARTS

if TYPE_CHECKING:
    from altair.typing import ChartType

_PRUNED = "pruned, the best of its budget"


@CHARTS.register("controls")
def controls(study: StudyFrames) -> ChartType | None:
    """Accuracy against MACs of every control and of the pruned model beside it."""
    found = [each for each in beside_controls(study) if each.control["macs_share"] is not None]
    if not found:
        return None
    marks = [
        {
            "trial": each.control["trial_id"],
            "what": each.control["label"],
            "macs_share": each.control["macs_share"],
            "accuracy": each.accuracy,
        }
        for each in found
    ]
    pruned = {each.pruned["trial_id"]: each.pruned for each in found if each.pruned is not None}
    marks += [
        {"trial": name, "what": _PRUNED, "macs_share": row["macs_share"], "accuracy": row["accuracy"]}
        for name, row in sorted(pruned.items())
        if row["macs_share"] is not None
    ]
    names = [_PRUNED, *sorted({each.control["label"] for each in found})]
    dense = next((row["accuracy_dense"] for row in pruned.values()), study.dense.get("accuracy"))
    bounds = accuracy_bounds([mark["accuracy"] for mark in marks] + ([] if dense is None else [dense]))
    y = alt.Y(
        "accuracy:Q", title="top-1 accuracy", axis=alt.Axis(format="~%"), scale=alt.Scale(domain=bounds, nice=False)
    )
    legend = alt.Legend(title=None, orient="bottom", columns=3)
    points = (
        alt.Chart(alt.InlineData(values=marks))
        .mark_point(size=70, strokeWidth=1.5, filled=True, opacity=0.9)
        .encode(
            x=alt.X("macs_share:Q", title="MACs, share of the dense model", axis=alt.Axis(format="~%")),
            y=y,
            color=alt.Color("what:N", scale=style.scale(style.label_colours(names), names), legend=legend),
            shape=alt.Shape("what:N", scale=style.scale(style.label_shapes(names), names), legend=legend),
            tooltip=[
                alt.Tooltip("trial:N", title="trial"),
                alt.Tooltip("what:N", title="what"),
                alt.Tooltip("accuracy:Q", title="top-1", format=".2%"),
                alt.Tooltip("macs_share:Q", title="MACs", format=".1%"),
            ],
        )
    )
    layers: list[alt.Chart] = [points]
    subtitle = "Mark: a control, or the pruned model beside it; accuracy on the images that are reported on"
    if dense is not None:
        rule = alt.Chart(alt.InlineData(values=[{"accuracy": dense}]))
        layers.insert(0, rule.mark_rule(color=style.DENSE, strokeDash=[2, 3]).encode(y=y))
        subtitle += f"; dotted line: dense, {percent(dense)}"
    title = alt.TitleParams("Pruned models and controls", subtitle=subtitle)
    return alt.layer(*layers).properties(width=style.WIDTH - 70, height=260, title=title)
