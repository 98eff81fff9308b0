"""An answer to one question about methods, and how it is put into words."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from cleanai_ray.analysis.comparisons import FEWEST_UNITS, Comparison, holm
from cleanai_ray.analysis.numbers import plural

AnswerVerdict = Literal["yes", "no", "cannot tell"]

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Answer:
    """The answer to one question.

    Attributes:
        key: Short name of the question, the same in every report: a, b1, b2, ...
        question: The question.
        verdict: Yes or no where the effect is beyond doubt after Holm's correction over all questions.
        sentence: The answer in words, with its numbers.
        effect: What was compared, in `unit`; None where there is nothing to compare. Likewise the rest.
        low: Lower end of its 95 % interval, not corrected.
        high: Upper end.
        num_pairs: Pairs it rests on.
        p_value: After Holm's correction over all questions that were answered with a test.
        num_dropped: Pairs left out because a trial failed.
        unit: `points` of accuracy, `rank correlation`, `correlation` or `overlap`.
    """

    key: str
    question: str
    verdict: AnswerVerdict
    sentence: str
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
        key: As in `Answer`; likewise `question` and `unit`.
        question: The question.
        comparison: The numbers; its p-value is not corrected yet.
        subject: What the sentence is about: `wanda against magnitude`.
        remark: What the sentence adds at its end.
        missing: Why nothing can be said; then the rest does not count.
        settled: A verdict that does not hang on the sign of the effect; None: yes above zero, no below.
        unit: What the effect is in.
    """

    key: str
    question: str
    comparison: Comparison = field(default_factory=Comparison)
    subject: str = ""
    remark: str = ""
    missing: str = ""
    settled: AnswerVerdict | None = None
    unit: str = "points"


def settle(drafts: list[Draft]) -> tuple[Answer, ...]:
    """Correct the p-values of all drafts together, and put them into words."""
    corrected = holm([None if draft.missing else draft.comparison.p_value for draft in drafts])
    return tuple(_answer(draft, p_value) for draft, p_value in zip(drafts, corrected, strict=True))


def _answer(draft: Draft, p_value: float | None) -> Answer:
    found = draft.comparison
    empty = Answer(draft.key, draft.question, "cannot tell", draft.missing, unit=draft.unit)
    dropped = _dropped(found)
    if draft.missing or found.effect is None:
        sentence = (
            draft.missing or f"{draft.subject}: no pair of trials succeeded, so nothing can be compared{dropped}."
        )
        return replace(empty, sentence=sentence, num_dropped=found.num_dropped)
    verdict: AnswerVerdict = "cannot tell"
    if draft.settled is not None:
        verdict = draft.settled
    elif found.is_above_zero(p_value):
        verdict = "yes"
    elif found.is_below_zero(p_value):
        verdict = "no"
    return Answer(
        key=draft.key,
        question=draft.question,
        verdict=verdict,
        sentence=f"{draft.subject}: {_numbers(draft, p_value)}{dropped}.{draft.remark and ' '}{draft.remark}",
        effect=found.effect,
        low=found.low,
        high=found.high,
        num_pairs=found.num_pairs,
        p_value=p_value,
        num_dropped=found.num_dropped,
        unit=draft.unit,
    )


def _numbers(draft: Draft, p_value: float | None) -> str:
    found = draft.comparison
    assert found.effect is not None
    pairs = plural(found.num_pairs, "pair")
    if found.low is None or found.high is None:
        few = f"{pairs} in {plural(found.num_units, 'cell')}, at least {FEWEST_UNITS} cells are needed to judge"
        return f"{with_unit(found.effect, draft.unit)} ({few})"
    test = "" if p_value is None else f", {write_p(p_value)}"
    interval = f"95 % interval {signed(found.low)} to {signed(found.high)}"
    return f"{with_unit(found.effect, draft.unit)} ({interval}, {pairs}{test})"


def _dropped(found: Comparison) -> str:
    return f"; {plural(found.num_dropped, 'pair')} dropped because a trial failed" if found.num_dropped else ""


def signed(value: float, digits: int = 2) -> str:
    """Write a number with its sign; zero has none."""
    rounded = round(value, digits) + 0.0
    text = f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"
    return text.replace("-", MINUS)


def with_unit(value: float, unit: str) -> str:
    """Write an effect: `+0.31 points`, `rank correlation +0.42`."""
    return f"{signed(value)} points" if unit == "points" else f"{unit} {signed(value)}"


def write_p(p_value: float) -> str:
    """Write a p-value: `p = 0.034`, `p < 0.001`."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
