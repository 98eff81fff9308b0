"""The text of a joint report: what to take, how sure that is, the answers, and what they rest on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cleanai_ray.analysis.joint.answers import JointAnswer, JointRow
from cleanai_ray.analysis.joint.choice import whole_configurations
from cleanai_ray.analysis.joint.findings import JointFindings, sureness
from cleanai_ray.analysis.joint.study import JointStudy
from cleanai_ray.analysis.numbers import plural
from cleanai_ray.report.blocks import (
    Block,
    Callout,
    Chapter,
    Document,
    Figure,
    Heading,
    KeyNumber,
    KeyNumbers,
    Paragraph,
    Tone,
)
from cleanai_ray.report.joint import tables

_METHOD = (
    "An effect is the mean over networks of the means of their trainings, each a mean over draws of calibration "
    "images; budgets are never averaged. Its error has three parts: networks or trainings, by the variance that a "
    "hierarchical bootstrap has, which takes along what is nested in them; draws of calibration images, which all runs "
    "share; and scored images, which all runs share. Intervals are Student's in the first two and normal in the last, "
    "joined by the root of the sum of the squares of their half widths (Zou and Donner). Draws are told by those that "
    "all runs have; with fewer than three there is no interval. Sizes of one draw are not draws of their own.",
    "For these networks: what would hold if the same networks were trained anew, pruned from other images and scored "
    "on others. For networks like these: what would hold for other networks of which these are a sample. The second "
    "is never told where the first is not. Could tell: the least difference that would be found four times in five; a "
    "smaller one may well be there where the answer is that one cannot tell. P-values are those of the first scope, "
    "or of the second where no network was trained several times.",
    "All intervals of one table hold at once (Bonferroni), and those of all exploratory questions together. The "
    "primary question is the one that the study files declare before they run (questions.primary).",
)


_NOT_WHOLE = "No configuration is in every run without a failed trial."
_NOT_KNOWN = (
    "No configuration that is in every run without a failed trial can be chosen: single images of its trials are not "
    "known."
)


@dataclass(frozen=True)
class JointDocument(Document):
    """A report on several runs."""

    @property
    def heading(self) -> str:
        """The title in words."""
        return f"Pruning studies together: {self.title}"


def write_joint_document(findings: JointFindings, figure: Figure | None) -> Document:
    """Return the report of several runs.

    Args:
        findings: What they say.
        figure: The chart of differences; None where there is none.
    """
    joint = findings.joint
    tone: Tone = "plain" if findings.is_whole else "warn"
    cover: list[Block] = [Callout("Joint evidence", findings.headline, tone), _key_numbers(findings)]
    cover.append(Paragraph(f"{findings.body}."))
    cover += [] if figure is None else [figure]
    chapters = (_summary(findings), _answers(findings), _differences(findings), _controls(findings), _runs(findings))
    first = joint.runs[0].study
    return JointDocument(
        title=f"{plural(len(joint.runs), 'run')} on {plural(len(joint.networks), 'network')}",
        question=_question(joint),
        version=str(first.environment.get("version") or ""),
        cover=tuple(cover),
        chapters=tuple(chapter for chapter in chapters if chapter is not None),
    )


def _question(joint: JointStudy) -> str:
    asked = dict.fromkeys(str(run.study.study.get("question") or "") for run in joint.runs)
    return " ".join(question for question in asked if question)


def _key_numbers(findings: JointFindings) -> KeyNumbers:
    joint = findings.joint
    count, planned = len(joint.runs), joint.num_planned
    draws = set.intersection(*({row["draw"] for row in rows} for rows in joint.trials)) - {None}
    numbers = [
        KeyNumber(
            "runs", str(count) if planned is None else f"{count} of {planned}", "one training of one network each"
        ),
        KeyNumber("networks", str(len(joint.networks)), ", ".join(joint.networks)),
        KeyNumber("draws", str(len(draws)), "of calibration images, in each run"),
        KeyNumber("trials", str(sum(len(rows) for rows in joint.trials)), "pruned models"),
    ]
    if joint.shares_images:
        told = int(joint.test_images.sum())
        note = f"of {len(joint.test_images)} decided nothing" if joint.is_tested else "all of them decided"
        numbers.append(KeyNumber("images", str(told), note))
    return KeyNumbers(tuple(numbers))


def _summary(findings: JointFindings) -> Chapter:
    joint = findings.joint
    blocks: list[Block] = [Heading("What to take, and what it costs")]
    if findings.choices:
        blocks.append(tables.choices_table(findings.choices))
        where = (
            "chosen by the mean difference from dense on the images that decide; all numbers are of the others, though "
            "of the same trainings and draws"
            if joint.is_tested
            else "chosen by the images that the numbers are of, so that they flatter"
        )
        blocks.append(Paragraph(f"In points of top-1, {where}. The intervals hold at once.", is_small=True))
    else:
        is_any_whole = any(whole_configurations(joint, amount) for amount in joint.amounts)
        blocks.append(Paragraph(_NOT_KNOWN if is_any_whole else _NOT_WHOLE))
    told = sureness(findings)
    if told:
        blocks += [Heading("How sure that is, and what would change it"), *(Paragraph(text) for text in told)]
    return Chapter("Summary", tuple(blocks))


def _answers(findings: JointFindings) -> Chapter:
    blocks: list[Block] = []
    primary = findings.primary
    if primary is not None:
        blocks += [Heading(f"Primary: {primary.question}"), *_answered(primary)]
        if primary.rows:
            blocks.append(tables.networks_table(primary.rows, findings.joint.networks))
    others = [answer for answer in findings.answers if not answer.is_primary and answer.rows]
    for answer in others:
        blocks += [Heading(f"Exploratory: {answer.question}"), *_answered(answer)]
    missing: dict[str, list[str]] = {}
    for answer in findings.answers:
        if not answer.rows and not answer.is_primary:
            missing.setdefault(answer.missing, []).append(answer.question)
    if missing:
        blocks.append(Heading("Not answered"))
        blocks += [Paragraph(f"{' '.join(asked)} {reason}") for reason, asked in missing.items()]
    blocks += [Heading("How this is computed"), *(Paragraph(text, is_small=True) for text in _METHOD)]
    return Chapter("Answers, budget by budget", tuple(blocks), starts_page=True)


def _answered(answer: JointAnswer) -> list[Block]:
    if not answer.rows:
        return [Paragraph(answer.missing)]
    unit = "points of top-1" if answer.unit == "points" else answer.unit
    note = f"Effects in {unit}.{_left_out(answer.rows)}"
    return [tables.effects_table(answer.rows, "compared"), Paragraph(note, is_small=True)]


def _left_out(rows: Sequence[JointRow]) -> str:
    """Return a sentence for each reason why draws of single runs are not in the effects of a table."""
    left = [
        (sum(row.found.num_dropped for row in rows), "because a trial failed"),
        (sum(row.found.num_unknown for row in rows), "because the single images of a trial are not known"),
        (sum(row.found.num_near_chance for row in rows), "because both models are near chance"),
    ]
    return "".join(f" {plural(count, 'draw')} of single runs left out {why}." for count, why in left if count)


def _differences(findings: JointFindings) -> Chapter | None:
    if not findings.differences:
        return None
    note = "On all scored images: nothing was chosen by them. In points of top-1; all intervals hold at once."
    note += _left_out(findings.differences)
    table = tables.effects_table(findings.differences, "method", with_answer=False)
    by_network = tables.networks_table(findings.differences, findings.joint.networks)
    title = f"Differences from {findings.reference}"
    blocks = (table, Paragraph(note, is_small=True), Heading("Network by network"), by_network)
    return Chapter(title, blocks)


def _controls(findings: JointFindings) -> Chapter | None:
    if not findings.controls:
        return None
    images = "the images that decided nothing" if findings.joint.is_tested else "all scored images"
    note = (
        f"Pruned models minus controls, on {images}, in points of top-1; all intervals hold at once. From scratch and "
        "narrower: trained for as long as the dense network and fine-tuning took. Controls are described in the "
        f"report of each run.{_left_out(findings.controls)}"
    )
    table = tables.effects_table(findings.controls, "compared", with_answer=False)
    return Chapter("Does pruning pay?", (table, Paragraph(note, is_small=True)))


def _runs(findings: JointFindings) -> Chapter:
    blocks: list[Block] = [tables.runs_table(findings.joint)]
    if not findings.joint.shares_images:
        blocks.append(
            Paragraph(
                "The runs were not all scored on the same images, or did not keep which of them are right: what other "
                "images would change is in the intervals only as far as the runs differ in their images."
            )
        )
    return Chapter("The runs", tuple(blocks))
