"""What several runs say together, as a value in Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cleanai_ray.analysis.joint.answers import JointAnswer, JointRow
from cleanai_ray.analysis.joint.choice import JointChoice
from cleanai_ray.analysis.joint.findings import JointFindings, effect_text, sureness
from cleanai_ray.analysis.numbers import percent
from cleanai_ray.display.tables import Displayed, Grid, Summary

if TYPE_CHECKING:
    from altair.typing import ChartType


@dataclass(frozen=True, eq=False)
class JointAnalysis(Displayed):
    """What several runs say together.

    Attributes:
        findings: Everything that their joint report says.
    """

    findings: JointFindings

    @property
    def answers(self) -> tuple[JointAnswer, ...]:
        """The questions, each with its effects, their intervals and its answers, ratio by ratio or budget by budget."""
        return self.findings.answers

    @property
    def choices(self) -> tuple[JointChoice, ...]:
        """What to take at each ratio or budget."""
        return self.findings.choices

    @property
    def differences(self) -> tuple[JointRow, ...]:
        """Every method minus the reference at each ratio or budget."""
        return self.findings.differences

    @property
    def controls(self) -> tuple[JointRow, ...]:
        """Pruned models minus controls."""
        return self.findings.controls

    def chart(self) -> ChartType | None:
        """Return the chart of differences; None where there are none."""
        import altair as alt

        from cleanai_ray.charts import style
        from cleanai_ray.charts.joint_differences import joint_differences

        found = joint_differences(self.findings.differences, self.findings.reference)
        return None if found is None else alt.Chart.from_dict(style.specification(found))

    def summary(self) -> Summary:
        """Return the headline, the answers, and what to take at each ratio or budget."""
        told = tuple(
            (answer.question, row.amount, row.subject, row.answer, effect_text(row.found))
            for answer in self.answers
            if answer.unit == "points"
            for row in answer.rows
        )
        columns = ("question", "asked for", "compared", "answer", "effect")
        taken = tuple(
            (one.amount, one.name, percent(one.accuracy, 2), effect_text(one.against_dense)) for one in self.choices
        )
        heads = ("asked for", "take", "top-1", "minus dense")
        grids = [
            Grid(columns=names, rows=rows, left=names) for names, rows in ((heads, taken), (columns, told)) if rows
        ]
        return Summary(self.findings.headline, tuple(grids), sureness(self.findings))

    def __repr__(self) -> str:
        return f"JointAnalysis({self.findings.body})"
