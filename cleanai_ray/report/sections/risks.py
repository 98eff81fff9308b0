"""The chapter of risks."""

from __future__ import annotations

from cleanai_ray.analysis.risks import describe_checks
from cleanai_ray.registry import CHAPTERS
from cleanai_ray.report.blocks import Block, Chapter, Paragraph, RiskNote
from cleanai_ray.report.sections.base import ChapterWriter, ReportContent


@CHAPTERS.register("risks")
class Risks(ChapterWriter):
    """Everything that speaks against the result, and what was looked for."""

    position = 60

    def place(self, content: ReportContent) -> float:
        """Return the position; the first of all where every trial failed, for the errors are then the result."""
        return 0 if content.study.best is None else self.position

    def write(self, content: ReportContent) -> Chapter:
        """Return the chapter."""
        risks = content.findings.risks
        notes: list[Block] = [RiskNote(risk.severity, risk.kind, risk.sentence, risk.details) for risk in risks]
        if all(risk.severity == "info" for risk in risks):
            text = "No risk of high or medium severity was found. That covers the checks listed below and nothing else."
            notes.insert(0, Paragraph(text))
        checked = (
            f"Checked: {describe_checks()}. A check looks at what the study measured; it does not replace a test on "
            "the data and the device of the deployment."
        )
        return Chapter("Risks", (*notes, Paragraph(checked, is_small=True)), starts_page=True)
