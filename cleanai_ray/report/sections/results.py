"""The chapter of results: the charts of all trials."""

from __future__ import annotations

from cleanai_ray.registry import CHAPTERS
from cleanai_ray.report.blocks import Chapter
from cleanai_ray.report.sections.base import ChapterWriter, ReportContent
from cleanai_ray.report.sections.cover import cost_charts, cover_chart


@CHAPTERS.register("results")
class Results(ChapterWriter):
    """Accuracy against cost, then its own charts, then all that no other chapter shows."""

    position = 30
    charts = ("selection_test", "accuracy_by_method", "coverage_heatmap", "finetune_curves")

    def write(self, content: ReportContent) -> Chapter | None:
        """Return the chapter; None where there is no chart to show."""
        on_cover, costs = cover_chart(content), cost_charts(content.study)
        first = [name for name in costs if name != on_cover]
        named = {on_cover, *first}.union(*(CHAPTERS.get(name).charts for name in CHAPTERS.names()))
        shown = content.charts(*first, *self.charts, *sorted(set(content.figures) - named))
        return Chapter("Results", tuple(shown), starts_page=True) if shown else None
