"""The answer of several runs to one question, at each ratio or budget, and the words for it."""

from __future__ import annotations

from dataclasses import dataclass

from cleanai_ray.analysis.joint.difference import LIKE_THESE, THESE, JointDifference, Scope
from cleanai_ray.analysis.numbers import NONE, p_text, plural, signed

CANNOT_TELL = "cannot tell"


@dataclass(frozen=True)
class JointRow:
    """One effect.

    Attributes:
        amount: The ratio or budget, in words.
        subject: What is compared.
        found: The effect, one of all that are shown with it.
        is_yes_above: True if an effect above its threshold answers the question with yes; False: one below it.
    """

    amount: str
    subject: str
    found: JointDifference
    is_yes_above: bool = True

    @property
    def answer(self) -> str:
        """Yes or no, with the scope in which that is beyond doubt; or that it cannot be told."""
        scope = self.found.told
        if scope is None:
            return self.untold
        is_above = self.found.effect > self.found.threshold
        return f"{'yes' if is_above == self.is_yes_above else 'no'}, for {scope}"

    @property
    def untold(self) -> str:
        """That it cannot be told, and why where draws are too few."""
        few = self.found.few_draws
        return CANNOT_TELL if few is None else f"{CANNOT_TELL}, with {plural(few, 'draw')} in all runs"

    @property
    def texts(self) -> tuple[str, str, str, str, str]:
        """The effect, its intervals for these networks and for networks like these, what could be told, and p."""
        found = self.found
        could = NONE if found.detectable is None else f"{found.detectable:.2f}"
        p_value = NONE if found.p_value is None else p_text(found.p_value).removeprefix("p ").removeprefix("= ")
        return signed(found.effect), interval_text(found, THESE), interval_text(found, LIKE_THESE), could, p_value


@dataclass(frozen=True)
class JointAnswer:
    """One question.

    Attributes:
        key: Short name of the question, the same in every report.
        question: The question.
        unit: Unit of the effects.
        rows: An effect per ratio or budget, and method where it asks about each.
        is_primary: True if the study files declare it as primary; all others are exploratory.
        missing: Why nothing can be said; then there are no rows.
    """

    key: str
    question: str
    unit: str = "points"
    rows: tuple[JointRow, ...] = ()
    is_primary: bool = False
    missing: str = ""


def interval_text(found: JointDifference, scope: Scope) -> str:
    """Write an interval: `-0.31 to +0.42`, with proper signs."""
    interval = found.interval(scope)
    return NONE if interval is None else f"{signed(interval[0])} to {signed(interval[1])}"
