"""The summary, one page for whoever decides: what to take, what it costs, how sure that is, what would change it."""

from __future__ import annotations

from cleanai_ray.analysis.answers import Answer
from cleanai_ray.analysis.findings import Findings
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import percent, plural
from cleanai_ray.analysis.recommendation import Recommendation
from cleanai_ray.analysis.risks.base import LARGE_LOSS
from cleanai_ray.analysis.score_words import compared_text
from cleanai_ray.analysis.verdict import stated_limit
from cleanai_ray.analysis.wording import describe_trial
from cleanai_ray.registry import CHAPTERS
from cleanai_ray.report.blocks import Block, Callout, Chapter, Heading, Paragraph
from cleanai_ray.report.sections.base import ChapterWriter, ReportContent


@CHAPTERS.register("summary")
class Summary(ChapterWriter):
    """The recommendation with its price, its certainty and its conditions."""

    position = 10

    def write(self, content: ReportContent) -> Chapter | None:
        """Return the chapter; None where every trial failed."""
        study, findings = content.study, content.findings
        if study.best is None:
            return None
        blocks: list[Block] = [Heading("What to take"), *recommendation_blocks(findings.recommendation)]
        if findings.recommendation.cost:
            blocks += [Heading("What it costs"), Paragraph(findings.recommendation.cost)]
        blocks += [Heading("How sure that is"), *(Paragraph(text) for text in findings.decision.sureness)]
        blocks.append(_risk_count(findings))
        blocks += [Heading("What would change the answer"), *(Paragraph(text) for text in findings.decision.changes)]
        blocks += _smallest(study, findings)
        answered = _answers(findings.answers)
        if answered:
            blocks += [Heading("What the study found"), Paragraph(answered)]
        return Chapter("Summary", tuple(blocks))


def recommendation_blocks(found: Recommendation) -> list[Block]:
    """Return the recommended trial and the reason; or what is missing for one to qualify."""
    if found.trial is None:
        return [Callout("No recommendation", found.in_full, "bad")]
    return [Callout("Recommended", found.sentence, "plain"), Paragraph(found.why)]


def _answers(answers: tuple[Answer, ...]) -> str:
    """Say which questions have an answer, and how many have none."""
    shown = [answer for answer in answers if answer.effect is not None]
    decided = [answer for answer in shown if answer.verdict != "cannot tell"]
    words = [
        f"{answer.question} {answer.verdict.capitalize()}{' (primary)' if answer.is_primary else ''}."
        for answer in decided
    ]
    open_ones = len(shown) - len(decided)
    if open_ones:
        words.append(
            f"{open_ones} of {plural(len(shown), 'question')} about methods {'has' if open_ones == 1 else 'have'} no "
            "answer yet: these trials and images are too few to tell."
        )
    return " ".join([*words, "Findings has the numbers."]) if shown else ""


def _smallest(study: StudyFrames, findings: Findings) -> list[Block]:
    """Return a paragraph on the smallest model within one point of the dense one, where that is not the best trial."""
    smallest, best = findings.smallest_within_a_point, study.best
    assert best is not None
    where = " on the images that decide" if study.choice.has_test_images else ""
    if smallest is None:
        limit = stated_limit(study)
        if best["loss_points"] is None or (
            limit is not None and limit >= LARGE_LOSS and not study.choice.is_recommended
        ):
            return []  # not known, or said already of a limit that is no stricter
        return [Paragraph(f"A limit of one point: every trial loses more than that{where}, so none could be taken.")]
    if smallest["trial_id"] == best["trial_id"]:
        return []
    text = (
        f"A limit of one point: the smallest model within one point of the dense one{where} is "
        f"{describe_trial(smallest)}: "
        f"{compared_text(smallest)} at {percent(smallest['macs_share'], 0)} of the MACs "
        f"({smallest['trial_id']})."
    )
    return [Paragraph(text)]


def _risk_count(findings: Findings) -> Paragraph:
    counts = {level: sum(risk.severity == level for risk in findings.risks) for level in ("high", "medium", "info")}
    return Paragraph(
        f"Risks found: {counts['high']} high, {counts['medium']} medium, {counts['info']} for information; see Risks."
    )
