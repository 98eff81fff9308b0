"""The chapter that lists every trial."""

from __future__ import annotations

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import plural
from cleanai_ray.registry import CHAPTERS
from cleanai_ray.report.blocks import Chapter, Paragraph
from cleanai_ray.report.pdf.style import MOST_TRIALS
from cleanai_ray.report.sections.base import ChapterWriter, ReportContent
from cleanai_ray.report.sections.trial_table import SIGNIFICANT, trial_table


@CHAPTERS.register("every_trial")
class EveryTrial(ChapterWriter):
    """The table of trials, with a note on its columns."""

    position = 40

    def write(self, content: ReportContent) -> Chapter:
        """Return the chapter."""
        note = Paragraph(_note(content.study), is_small=True)
        return Chapter("Every trial", (note, trial_table(content.study)))


def _note(study: StudyFrames) -> str:
    note = (
        f"{plural(len(study.results), 'trial')}, {len(study.ok)} with a result, the most accurate first. Top-1 with "
        "half the width of its 95 % interval (Wilson); against dense in percentage points; MACs as a share of the "
        "dense model"
    )
    if study.ok["speedup"].count():
        note += f"; speed-up {'at batch 1' if study.target is None else f'in {study.target}'}"
    note += "."
    if study.ok["speedup_low"].count():
        note += " In brackets its 95 % interval (bootstrap)."
    if study.ok["mcnemar_p"].count():
        note += f" *: McNemar's exact test tells it apart from the dense model, p < {SIGNIFICANT:g}."
    if len(study.results) > MOST_TRIALS:
        note += (
            f" The PDF lists the first {MOST_TRIALS} and the chosen one; report.html and results.parquet have them all."
        )
    return note
