"""The chapter that compares: the chosen trial with the dense model, ratios and budgets, quantisations, methods."""

from __future__ import annotations

from cleanai_ray.analysis.findings import Findings
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import plural
from cleanai_ray.analysis.score_words import is_counted
from cleanai_ray.registry import CHAPTERS
from cleanai_ray.report.blocks import Block, Chapter, Heading, Paragraph
from cleanai_ray.report.sections import tables
from cleanai_ray.report.sections.base import ChapterWriter, ReportContent
from cleanai_ray.report.sections.quantization import quantization_blocks, quantization_costs

_CELLS = "The best at every ratio or budget on {images}, and the best of any other method."
_DECIDING, _SCORED = "the images that decide", "the scored images, none of which were set aside"
_NOT_KEPT = " Apart: not known, since single images were not kept."
_APART = (
    " Apart: yes where McNemar's exact test tells the two from each other, image by image (Holm's correction for all "
    "rows); else the difference in points from which on they could be told apart, four times in five."
)


@CHAPTERS.register("comparisons")
class Comparisons(ChapterWriter):
    """Tables of what the summary says in words."""

    position = 15

    def write(self, content: ReportContent) -> Chapter | None:
        """Return the chapter; None where every trial failed."""
        study, findings = content.study, content.findings
        if study.best is None:
            return None
        blocks: list[Block] = [Heading("Dense against best"), tables.dense_against_best(study)]
        if len(findings.cells) > 1 or any(cell.runner_up for cell in findings.cells):
            blocks += [
                Heading("Best at every ratio and budget"),
                tables.cells(findings),
                Paragraph(_cells_note(study, is_counted(study.best)), is_small=True),
            ]
        costs = quantization_costs(study)
        if costs:
            blocks += [Heading("Quantisation"), *quantization_blocks(costs)]
        if len(findings.ranking) > 1:
            explained = Paragraph(_ranking_note(findings), is_small=True)
            blocks += [Heading("Methods compared"), tables.ranking(findings), explained]
        return Chapter("Comparisons", tuple(blocks))


def _cells_note(study: StudyFrames, has_apart: bool) -> str:
    told = _CELLS.format(images=_DECIDING if study.choice.has_test_images else _SCORED)
    apart = _NOT_KEPT if study.correct.is_empty() else _APART
    return told + apart * has_apart


def _ranking_note(findings: Findings) -> str:
    first = findings.ranking[0]
    where = (
        f"Mean accuracy over the {plural(first.num_cells, 'cell')} (ratio or budget, mode, steps) of all methods."
        if first.is_shared
        else "The methods share no cell (ratio or budget, mode, steps): each mean is over the method's own cells."
    )
    wins = "Wins: shared cells in which the method is the best."
    return f"{where} {wins} Against random: mean difference over the cells that both have."
