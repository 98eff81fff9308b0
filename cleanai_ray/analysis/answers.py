"""An answer to one question about methods, and the words for it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from cleanai_ray.analysis.comparisons import FEWEST_UNITS, Comparison
from cleanai_ray.analysis.numbers import p_text, plural, signed

AnswerVerdict = Literal["yes", "no", "cannot tell"]


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    Attributes:
        key: Short name of the question, the same in every report: a, b1, b2, ...
        question: The question.
        verdict: Yes or no where the effect is beyond doubt after Holm's correction over all questions.
        sentence: The answer in words, with its numbers.
        effect: The difference, correlation or overlap that was found, in `unit`; None where nothing can be compared,
            and then `low`, `high` and `p_value` are None too.
        low: Lower end of its 95 % interval, not corrected.
        high: Upper end.
        num_pairs: Pairs of trials that it rests on.
        p_value: The p-value after Holm's correction over all questions that were answered with a test.
        num_dropped: Pairs left out because one of their trials failed.
        unit: `points` of accuracy, `rank correlation`, `correlation` or `overlap`.
    """

    key: str
    question: str
    verdict: AnswerVerdict = "cannot tell"
    sentence: str = ""
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    num_pairs: int = 0
    p_value: float | None = None
    num_dropped: int = 0
    unit: str = "points"


@dataclass(frozen=True)
class Draft:
    """An answer before the correction: what decides it, and the words for each verdict.

    Attributes:
        comparison: The numbers; its p-value is not corrected yet.
        subject: The subject of the sentence: `wanda against magnitude`.
        remark: A sentence for the end.
        missing: Why nothing can be said; the other attributes then do not count.
        settled: A verdict that does not depend on the sign of the effect; None: yes above zero, no below.
    """

    comparison: Comparison = field(default_factory=Comparison)
    subject: str = ""
    remark: str = ""
    missing: str = ""
    settled: AnswerVerdict | None = None


def put_in_words(asked: Answer, draft: Draft, p_value: float | None) -> Answer:
    """Return the answer that a draft gives.

    Args:
        asked: The question, not answered yet: its key, its text and its unit.
        draft: The comparison that decides it.
        p_value: The p-value after Holm's correction over all questions.
    """
    found = draft.comparison
    dropped = _dropped(found)
    if draft.missing or found.effect is None:
        sentence = (
            draft.missing
            or f"{draft.subject}: in no pair did both trials succeed, so nothing can be compared{dropped}."
        )
        return replace(asked, sentence=sentence, num_dropped=found.num_dropped)
    verdict: AnswerVerdict = "cannot tell"
    if draft.settled is not None:
        verdict = draft.settled
    elif found.is_above_zero(p_value):
        verdict = "yes"
    elif found.is_below_zero(p_value):
        verdict = "no"
    sentence = f"{draft.subject}: {_numbers(draft, asked.unit, p_value)}{dropped}."
    return replace(
        asked,
        verdict=verdict,
        sentence=f"{sentence} {draft.remark}".rstrip(),
        effect=found.effect,
        low=found.low,
        high=found.high,
        num_pairs=found.num_pairs,
        p_value=p_value,
        num_dropped=found.num_dropped,
    )


def _numbers(draft: Draft, unit: str, p_value: float | None) -> str:
    found = draft.comparison
    assert found.effect is not None
    pairs = plural(found.num_pairs, "pair")
    if found.low is None or found.high is None:
        few = f"{pairs} in {plural(found.num_units, 'cell')}; a test needs at least {FEWEST_UNITS} cells"
        return f"{with_unit(found.effect, unit)} ({few})"
    test = "" if p_value is None else f", {p_text(p_value)}"
    interval = f"95 % interval {signed(found.low)} to {signed(found.high)}"
    return f"{with_unit(found.effect, unit)} ({interval}, {pairs}{test})"


def _dropped(found: Comparison) -> str:
    return f"; {plural(found.num_dropped, 'pair')} dropped because a trial failed" if found.num_dropped else ""


def with_unit(value: float, unit: str) -> str:
    """Write an effect: `+0.31 points`, `rank correlation +0.42`."""
    return f"{signed(value)} points" if unit == "points" else f"{unit} {signed(value)}"
