"""The pages that answer: the recommendation, and the findings with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cleanai_ray.analysis.answers import Answer, signed, with_unit
from cleanai_ray.analysis.findings import Findings
from cleanai_ray.analysis.numbers import NONE, p_text, percent, points
from cleanai_ray.analysis.recommendation import Recommendation
from cleanai_ray.analysis.wording import describe_trial
from cleanai_ray.report.blocks import Block, Callout, Column, Figure, Heading, Paragraph, Section, Table

_METHOD = (
    "Every line compares trials in pairs, in the cells (ratio or budget, mode, steps) that both have; seeds are "
    "averaged within a cell, which is the unit of the interval and of the test. Yes and no: the 95 % interval excludes "
    "zero and p < 0.05 after Holm's correction over all questions. Effects in percentage points of top-1 unless "
    "another unit is named. They hold for this model and these images."
)


def answer_blocks(question: str, findings: Findings) -> list[Block]:
    """Return question, answer and recommendation."""
    blocks: list[Block] = []
    if question:
        blocks += [Heading("Question"), Paragraph(question)]
    blocks += [Heading("Answer"), Paragraph(findings.headline.sentence)]
    decided = [answer for answer in findings.answers if answer.verdict != "cannot tell"]
    blocks += [
        Paragraph(f"{answer.question} {answer.verdict.capitalize()}. {answer.sentence}") for answer in decided[:4]
    ]
    if len(decided) > 4:
        blocks.append(Paragraph(f"{len(decided) - 4} more under Findings.", is_small=True))
    return [*blocks, *recommendation_blocks(findings.recommendation)]


def recommendation_blocks(found: Recommendation) -> list[Block]:
    """Return what to take, why, what it costs and the runner-up; or that nothing qualifies, and what is missing."""
    if found.trial is None:
        lines = "; ".join(found.missing)
        return [
            Heading("Recommendation"),
            Callout("None of these", f"{found.sentence} {_sentence(lines)}".strip(), "bad"),
        ]
    text = " ".join(filter(None, [found.sentence, found.cost]))
    blocks: list[Block] = [Heading("Recommendation"), Callout("Recommended", text, "plain")]
    blocks.append(Paragraph(found.why))
    other = found.runner_up
    if other is not None:
        lost = NONE if other["loss_points"] is None else points(-other["loss_points"] / 100, 2)
        blocks.append(
            Paragraph(
                f"Runner-up: {describe_trial(other)}, trial {other['trial_id']}: {percent(other['accuracy'])} ({lost} "
                f"against dense) at {percent(other['macs_share'], 0)} of the MACs."
            )
        )
    return blocks


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


def findings_section(answers: Sequence[Answer], figures: Mapping[str, Figure]) -> Section | None:
    """Return the table of findings with the diagram of ranks; None where no question has an effect to show."""
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
    return Section("Findings", tuple(blocks), starts_page=True)


def findings_table(answers: Sequence[Answer]) -> Table:
    """Return a row a question: verdict, effect, interval, pairs and p-value."""
    columns = (
        Column("question", 0.35),
        Column("answer", 0.1),
        Column("effect", 0.21, True),
        Column("95 % interval", 0.16, True),
        Column("pairs", 0.08, True),
        Column("p (Holm)", 0.1, True),
    )
    rows = tuple(finding_row(answer) for answer in answers)
    decided = tuple(place for place, answer in enumerate(answers) if answer.verdict != "cannot tell")
    return Table(columns, rows, highlighted=decided)


def finding_row(answer: Answer) -> tuple[str, ...]:
    """Return an answer as the texts of a table's row."""
    effect = NONE if answer.effect is None else with_unit(answer.effect, answer.unit).removesuffix(" points")
    interval = NONE if answer.low is None or answer.high is None else f"{signed(answer.low)} to {signed(answer.high)}"
    p_value = NONE if answer.p_value is None else p_text(answer.p_value).removeprefix("p ").removeprefix("= ")
    return answer.question, answer.verdict, effect, interval, str(answer.num_pairs), p_value
