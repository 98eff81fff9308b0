"""The chapter on a score of which a low value is good: the trials in its own units."""

from __future__ import annotations

from cleanai_ray.analysis.numbers import NONE, percent, plural
from cleanai_ray.analysis.score_words import score_number, words_of_study
from cleanai_ray.registry import CHAPTERS
from cleanai_ray.report.blocks import Block, Chapter, Column, Paragraph, Table
from cleanai_ray.report.sections.base import ChapterWriter, ReportContent

_MOST = 20


@CHAPTERS.register("task_score")
class TaskScoreChapter(ChapterWriter):
    """Perplexity or RMSE of the best trials, and what the rest of the report compares instead."""

    position = 17
    charts = ("score_macs",)

    def write(self, content: ReportContent) -> Chapter | None:
        """Return the chapter; None for a score that is compared as it is, such as accuracy or mIoU."""
        study, words = content.study, words_of_study(content.study)
        if not words.is_inverted or study.ok.is_empty():
            return None
        ranked = study.ranked.head(_MOST)
        rows = tuple(
            (
                str(row["label"]),
                str(row["amount"]),
                score_number(row["score"]),
                f"{100 * row['accuracy']:.2f}",
                NONE if row["macs_share"] is None else percent(row["macs_share"], 0),
                str(row["trial_id"]).rpartition("-")[2],
            )
            for row in ranked.iter_rows(named=True)
        )
        dense = study.dense
        first = (
            "dense",
            NONE,
            score_number(dense.get("score")),
            f"{100 * (dense.get('accuracy') or 0):.2f}",
            "100 %",
            "",
        )
        columns = (
            Column("method", 0.3),
            Column("asked for", 0.16),
            Column(words.name, 0.14, True),
            Column(f"{words.compared}, %", 0.2, True),
            Column("MACs", 0.08, True),
            Column("id ends in", 0.12),
        )
        note = f"The dense model and the best {plural(len(ranked), 'trial')}, on all scored samples."
        blocks: tuple[Block, ...] = (
            Paragraph(words.explained),
            Table(columns, (first, *rows), highlighted=(0,)),
            Paragraph(note, is_small=True),
            *content.charts(*self.charts),
        )
        return Chapter(f"Score: {words.name}", blocks)
