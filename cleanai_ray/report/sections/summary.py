"""The summary: the answer, the recommendation, and the best of every cell and method."""

from __future__ import annotations

from cleanai_ray.analysis.findings import Findings
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import NONE, percent, plural, points, times
from cleanai_ray.analysis.recommendation import Recommendation
from cleanai_ray.analysis.wording import describe_trial
from cleanai_ray.registry import CHAPTERS
from cleanai_ray.report.blocks import Block, Callout, Chapter, Heading, Paragraph
from cleanai_ray.report.sections import tables
from cleanai_ray.report.sections.base import ChapterWriter, ReportContent
from cleanai_ray.report.sections.quantization import quantization_blocks, quantization_costs


@CHAPTERS.register("summary")
class Summary(ChapterWriter):
    """The answer, the recommendation and how methods compare, on a page or two."""

    position = 10

    def write(self, content: ReportContent) -> Chapter | None:
        """Return the chapter; None where every trial failed."""
        study, findings = content.study, content.findings
        if study.best is None:
            return None
        blocks = answer_blocks(str(study.study.get("question") or ""), findings)
        blocks += [*_smallest(study, findings), _risk_count(findings)]
        blocks += [Heading("Dense against best"), tables.dense_against_best(study)]
        if findings.cells:
            note = (
                "The best at every ratio or budget on the images that decide, and the best of any other method. Apart: "
                "yes where McNemar's test tells the two from each other, image by image (p < 0.05, not corrected)."
            )
            blocks += [
                Heading("Best at every ratio and budget"),
                tables.cells(findings),
                Paragraph(note, is_small=True),
            ]
        costs = quantization_costs(study)
        if costs:
            blocks += [Heading("Quantisation"), *quantization_blocks(costs)]
        if findings.ranking:
            explained = Paragraph(_ranking_note(findings), is_small=True)
            blocks += [Heading("Methods compared"), tables.ranking(findings), explained]
        return Chapter("Summary", tuple(blocks))


def answer_blocks(question: str, findings: Findings) -> list[Block]:
    """Return the study's question, the answer and the recommendation."""
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
    """Return the recommended trial, the reason, its cost and the runner-up; or what is missing for one to qualify."""
    if found.trial is None:
        lines = "; ".join(found.missing)
        return [
            Heading("Recommendation"),
            Callout("No recommendation", f"{found.sentence} {_sentence(lines)}".strip(), "bad"),
        ]
    text = " ".join(filter(None, [found.sentence, found.cost]))
    blocks: list[Block] = [Heading("Recommendation"), Callout("Recommended", text, "plain")]
    blocks.append(Paragraph(found.why))
    other = found.runner_up
    if other is not None:
        lost = NONE if other["loss_points"] is None else points(-other["loss_points"] / 100, 2)
        speed = "" if other["speedup"] is None else f" and {times(other['speedup'])} the speed"
        blocks.append(
            Paragraph(
                f"Runner-up: {describe_trial(other)}, trial {other['trial_id']}: {percent(other['accuracy'])} ({lost} "
                f"against dense) at {percent(other['macs_share'], 0)} of the MACs{speed}."
            )
        )
    return blocks


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _smallest(study: StudyFrames, findings: Findings) -> list[Block]:
    """Return a paragraph on the smallest model within one point of the dense one, where that is not the best trial."""
    smallest, best = findings.smallest_within_a_point, study.best
    assert best is not None
    if smallest is None:
        return [] if best["loss_points"] is None else [Paragraph("No trial stays within one point of the dense model.")]
    if smallest["trial_id"] == best["trial_id"]:
        return []
    text = (
        f"The smallest model within one point of the dense one is {describe_trial(smallest)}: "
        f"{percent(smallest['accuracy'])} at {percent(smallest['macs_share'], 0)} of the MACs "
        f"({smallest['trial_id']})."
    )
    return [Paragraph(text)]


def _ranking_note(findings: Findings) -> str:
    first = findings.ranking[0]
    where = (
        f"Mean accuracy over the {plural(first.num_cells, 'cell')} (ratio or budget, mode, steps) of all methods."
        if first.is_shared
        else "The methods share no cell (ratio or budget, mode, steps): each mean is over the method's own cells."
    )
    wins = "Wins: shared cells in which the method is the best."
    return f"{where} {wins} Against random: mean difference over the cells that both have."


def _risk_count(findings: Findings) -> Paragraph:
    counts = {level: sum(risk.severity == level for risk in findings.risks) for level in ("high", "medium", "info")}
    return Paragraph(
        f"Risks found: {counts['high']} high, {counts['medium']} medium, {counts['info']} for information; see Risks."
    )
