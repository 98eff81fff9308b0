"""An answer to one question about methods, and the words for it."""

from __future__ import annotations

from collections.abc import Callable
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
        verdict: Yes or no where the whole interval is on one side of zero, at no ratio or budget on the other.
        sentence: The answer in words, with its numbers.
        effect: The difference, correlation or overlap that was found, in `unit`; None where nothing can be compared,
            and then `low`, `high` and `p_value` are None too.
        low: Lower end of its 95 % interval: of the primary question alone, of all others together (Bonferroni).
        high: Upper end.
        num_pairs: Pairs of trials that it rests on.
        p_value: The p-value, corrected likewise: it is below 0.05 exactly where the interval excludes zero.
        num_dropped: Pairs left out because one of their trials failed.
        unit: `points` of accuracy, `rank correlation`, `correlation` or `overlap`.
        is_primary: True if the study file declared it before the study ran; every other question is exploratory.
        detectable: The least difference that would be found four times in five; None where there is no interval.
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
    is_primary: bool = False
    detectable: float | None = None


@dataclass(frozen=True)
class Draft:
    """An answer before the correction: what decides it, and the words for each verdict.

    Attributes:
        comparison: The numbers, not corrected yet.
        subject: The subject of the sentence: `wanda against magnitude`.
        remark: A sentence for the end.
        missing: Why nothing can be said; the other attributes then do not count.
        settled: A verdict that does not depend on the sign of the effect; None: yes above zero, no below.
        resolve: Where they depend on the correction, what gives `settled` and `remark` from the corrected comparison.
        threshold: The value from which the effect is to be told.
    """

    comparison: Comparison = field(default_factory=Comparison)
    subject: str = ""
    remark: str = ""
    missing: str = ""
    settled: AnswerVerdict | None = None
    resolve: Callable[[Comparison], tuple[AnswerVerdict | None, str]] | None = None
    threshold: float = 0.0

    def among(self, count: int) -> Draft:
        """Return the draft as one of `count` that are shown together; see `Comparison.among`."""
        return replace(self, comparison=self.comparison.among(count))


def put_in_words(asked: Answer, draft: Draft) -> Answer:
    """Return the answer that a draft gives.

    Args:
        asked: The question, not answered yet: its key, its text and its unit.
        draft: The comparison that decides it, corrected for all that are shown together.
    """
    found = draft.comparison
    dropped = _dropped(found)
    if draft.missing or found.effect is None:
        sentence = (
            draft.missing
            or f"{draft.subject}: in no pair did both trials succeed, so nothing can be compared{dropped}."
        )
        return replace(asked, sentence=sentence, num_dropped=found.num_dropped)
    settled, remark = (draft.settled, draft.remark) if draft.resolve is None else draft.resolve(found)
    verdict: AnswerVerdict = "cannot tell"
    if settled is not None:
        verdict = settled
    elif found.is_above_zero and not found.changes_sign:
        verdict = "yes"
    elif found.is_below_zero and not found.changes_sign:
        verdict = "no"
    told = _detectable(draft, asked.unit) if verdict == "cannot tell" else ""
    parts = [f"{draft.subject}: {_numbers(draft, asked.unit)}{dropped}.", told, _by_amount(found, asked.unit)]
    return replace(
        asked,
        verdict=verdict,
        sentence=" ".join(part for part in [*parts, remark] if part),
        effect=found.effect,
        low=found.low,
        high=found.high,
        num_pairs=found.num_pairs,
        p_value=found.p_value,
        num_dropped=found.num_dropped,
        detectable=found.detectable,
    )


def _detectable(draft: Draft, unit: str) -> str:
    """Say what difference would have been found, where none was."""
    least = draft.comparison.detectable
    if least is None:
        return "No difference can be told from so little."
    if unit == "points":
        return f"A difference from {least:.2f} points on would be found four times in five."
    article, above = "An" if unit[0] in "aeiou" else "A", f"{draft.threshold:g}"
    return (
        f"{article} {unit} from {draft.threshold + least:.2f} on would be told to be above {above} four times in five."
    )


def _by_amount(found: Comparison, unit: str) -> str:
    """Say the effect at each ratio or budget, with intervals that hold at once where there are any."""
    known = [(amount, one) for amount, one in found.by_amount if one.effect is not None]
    if len(known) < 2 or unit != "points":
        return ""
    words = [f"{amount} {signed(one.effect or 0.0)}{_interval(one)}" for amount, one in known]
    depends = " It depends on what is asked for, so there is no one answer." if found.changes_sign else ""
    return f"At each: {'; '.join(words)}.{depends}"


def _interval(found: Comparison) -> str:
    return "" if found.low is None or found.high is None else f" ({signed(found.low)} to {signed(found.high)})"


def _numbers(draft: Draft, unit: str) -> str:
    found = draft.comparison
    assert found.effect is not None
    pairs = plural(found.num_pairs, "pair")
    left = [f"{found.num_near_chance} left out as near chance"] if found.num_near_chance else []
    left += [f"{plural(found.num_copies, 'cell')} left out as a copy"] if found.num_copies else []
    if found.low is None or found.high is None:
        few = f"{pairs} in {plural(found.num_units, 'cell')}; a test needs at least {FEWEST_UNITS} cells"
        return f"{with_unit(found.effect, unit)} ({', '.join([few, *left])})"
    test = [] if found.p_value is None else [p_text(found.p_value)]
    interval = f"95 % interval {signed(found.low)} to {signed(found.high)}"
    return f"{with_unit(found.effect, unit)} ({', '.join([interval, pairs, *left, *test])})"


def _dropped(found: Comparison) -> str:
    return f"; {plural(found.num_dropped, 'pair')} dropped because a trial failed" if found.num_dropped else ""


def with_unit(value: float, unit: str) -> str:
    """Write an effect: `+0.31 points`, `rank correlation +0.42`."""
    return f"{signed(value)} points" if unit == "points" else f"{unit} {signed(value)}"
