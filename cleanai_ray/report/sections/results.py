"""The chapter of results: the charts of all trials."""

from __future__ import annotations

from cleanai_ray.registry import CHAPTERS
from cleanai_ray.report.blocks import Chapter
from cleanai_ray.report.sections.base import ChapterWriter, ReportContent
from cleanai_ray.report.sections.cover import COVER_CHART


@CHAPTERS.register("results")
class Results(ChapterWriter):
    """Its own charts, then all that no other chapter shows."""

    position = 30
    charts = ("accuracy_by_method", "accuracy_latency", "coverage_heatmap", "finetune_curves")

    def write(self, content: ReportContent) -> Chapter | None:
        """Return the chapter; None where there is no chart to show."""
        named = {COVER_CHART}.union(*(CHAPTERS.get(name).charts for name in CHAPTERS.names()))
        shown = content.charts(*self.charts, *sorted(set(content.figures) - named))
        return Chapter("Results", tuple(shown), starts_page=True) if shown else None
