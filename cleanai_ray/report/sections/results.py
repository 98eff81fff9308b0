"""The chapter of results: the charts of all trials."""

from __future__ import annotations

from cleanai_ray.registry import CHAPTERS
from cleanai_ray.report.blocks import Chapter
from cleanai_ray.report.sections.base import ChapterWriter, ReportContent
from cleanai_ray.report.sections.cover import cover_chart, other_chart


@CHAPTERS.register("results")
class Results(ChapterWriter):
    """Its own charts, then all that no other chapter shows."""

    position = 30
    charts = ("accuracy_by_method", "coverage_heatmap", "finetune_curves")

    def write(self, content: ReportContent) -> Chapter | None:
        """Return the chapter; None where there is no chart to show."""
        first, by_method = other_chart(content.study), self.charts[:1]
        # Where latency is what counts, MACs come right after it; else speed comes after the comparison of methods.
        order = [*by_method, first] if content.study.target is None else [first, *by_method]
        named = {cover_chart(content.study), first}.union(*(CHAPTERS.get(name).charts for name in CHAPTERS.names()))
        shown = content.charts(*order, *self.charts[1:], *sorted(set(content.figures) - named))
        return Chapter("Results", tuple(shown), starts_page=True) if shown else None
