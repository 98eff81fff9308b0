"""The chapter of findings: every question with its answer, its interval and its test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cleanai_ray.analysis.answers import Answer, with_unit
from cleanai_ray.analysis.numbers import NONE, p_text, signed
from cleanai_ray.registry import CHAPTERS
from cleanai_ray.report.blocks import Block, Chapter, Column, Figure, Heading, Paragraph, Table
from cleanai_ray.report.sections.base import ChapterWriter, ReportContent

_METHOD = (
    "Every row compares trials in pairs, over the cells (ratio or budget, mode, steps) that both have. Intervals are "
    "of other draws of calibration images and seeds, and of other test images where single images were kept; with "
    "fewer than three draws, of other cells in place of draws. The primary question is the one that the study file "
    "declares (questions.primary). All others are exploratory, and their 95 % intervals hold at once (Bonferroni): "
    "p < 0.05 exactly where the interval excludes zero. Could tell: the least difference that would be found four "
    "times in five; a smaller one may well be there where the answer is that one cannot tell. Effects are in "
    "percentage points of top-1 unless another unit is named. They hold for this model."
)


@CHAPTERS.register("findings")
class Findings(ChapterWriter):
    """The questions about methods that the study answers."""

    position = 20
    charts = ("critical_difference",)

    def write(self, content: ReportContent) -> Chapter | None:
        """Return the chapter; None where every trial failed, or no question has an effect to show."""
        if content.study.best is None:
            return None
        return findings_chapter(content.findings.answers, content.figures)


def findings_chapter(answers: Sequence[Answer], figures: Mapping[str, Figure]) -> Chapter | None:
    """Return the table of findings with the chart of ranks; None where no question has an effect to show."""
    shown = [answer for answer in answers if answer.effect is not None]
    if not shown:
        return None
    blocks: list[Block] = [findings_table(shown), Paragraph(_METHOD, is_small=True)]
    if "critical_difference" in figures:
        blocks.append(figures["critical_difference"])
    blocks.append(Heading("In words"))
    blocks += [Paragraph(f"{answer.question} {answer.verdict.capitalize()}. {answer.sentence}") for answer in shown]
    reasons: dict[str, list[str]] = {}
    for answer in answers:
        if answer.effect is None:
            reasons.setdefault(answer.sentence, []).append(answer.question)
    if reasons:
        blocks.append(Heading("Not answered"))
        blocks += [Paragraph(f"{' '.join(asked)} {reason}") for reason, asked in reasons.items()]
    return Chapter("Findings", tuple(blocks))


def findings_table(answers: Sequence[Answer]) -> Table:
    """Return one row per question: verdict, effect, interval, detectable difference, pairs and p-value."""
    columns = (
        Column("question", 0.31),
        Column("answer", 0.1),
        Column("effect", 0.2, True),
        Column("95 % interval", 0.15, True),
        Column("could tell", 0.09, True),
        Column("pairs", 0.07, True),
        Column("p", 0.08, True),
    )
    rows = tuple(finding_row(answer) for answer in answers)
    decided = tuple(place for place, answer in enumerate(answers) if answer.verdict != "cannot tell")
    return Table(columns, rows, highlighted=decided)


def finding_row(answer: Answer) -> tuple[str, ...]:
    """Return the cells of an answer's row."""
    effect = NONE if answer.effect is None else with_unit(answer.effect, answer.unit).removesuffix(" points")
    interval = NONE if answer.low is None or answer.high is None else f"{signed(answer.low)} to {signed(answer.high)}"
    p_value = NONE if answer.p_value is None else p_text(answer.p_value).removeprefix("p ").removeprefix("= ")
    question = f"{answer.question} (primary)" if answer.is_primary else answer.question
    could_tell = NONE if answer.detectable is None else f"{answer.detectable:.2f}"
    return question, answer.verdict, effect, interval, could_tell, str(answer.num_pairs), p_value
