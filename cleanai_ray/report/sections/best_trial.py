"""The chapter on the best trial: its stages, its speed and its layers."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from cleanai_ray.analysis.class_changes import ClassChange, class_changes
from cleanai_ray.analysis.wording import describe_trial
from cleanai_ray.registry import CHAPTERS
from cleanai_ray.report.blocks import Block, Chapter, Heading, Paragraph
from cleanai_ray.report.sections import tables
from cleanai_ray.report.sections.base import ChapterWriter, ReportContent

_CLASSES = 3
"""The most classes that are told in words."""


@CHAPTERS.register("best_trial")
class BestTrial(ChapterWriter):
    """The chosen trial in detail."""

    position = 50
    charts = ("dense_vs_best", "class_change", "layer_channels")

    def write(self, content: ReportContent) -> Chapter | None:
        """Return the chapter; None where every trial failed."""
        study, best = content.study, content.study.best
        if best is None:
            return None
        overview, of_classes, of_layers = (content.charts(name) for name in self.charts)
        blocks: list[Block] = [Paragraph(f"{describe_trial(best)}; trial {best['trial_id']}."), *overview]
        scored = study.ok.row(by_predicate=pl.col("trial_id") == best["trial_id"], named=True)
        blocks += [Heading("Accuracy after every stage"), tables.stages(scored)]
        if study.choice.has_test_images:
            blocks.append(Paragraph("On all scored images, also those that chose the trial.", is_small=True))
        timed = tables.latency(study, best["trial_id"])
        blocks += [Heading("Speed"), timed] if timed is not None else []
        blocks += of_classes
        changes = class_changes(study)
        worst = [one for one in changes if one.has_fallen][:_CLASSES]
        blocks += [Paragraph(f"The classes that fare worst. {_in_words(worst)}")] if worst else []
        blocks += [Paragraph("No class lost accuracy.")] if changes and not worst else []
        layers = tables.layers(study, best["trial_id"])
        if layers is not None:
            blocks += [*of_layers, Heading("Layers"), layers]
        return Chapter("Best trial", tuple(blocks), starts_page=True)


def _in_words(classes: Sequence[ClassChange]) -> str:
    """Tell what happened to some classes; that nothing was tested is said once."""
    if any(one.p_value is None for one in classes):
        told = "; ".join(str(one) for one in classes)
        return f"{told[0].upper()}{told[1:]}. Single images were not kept, so it is not known what of it is chance."
    return " ".join(one.sentence for one in classes)
