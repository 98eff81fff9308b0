"""What several runs say together: answers, differences from a reference, what to take, and the sentence above all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cleanai_ray.analysis.differences import reference_of
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.joint.answers import CANNOT_TELL, JointAnswer, JointRow, interval_text
from cleanai_ray.analysis.joint.choice import JointChoice, choose_jointly
from cleanai_ray.analysis.joint.controls import compare_with_controls
from cleanai_ray.analysis.joint.difference import LIKE_THESE, JointDifference
from cleanai_ray.analysis.joint.errors import FEWEST_FREEDOM
from cleanai_ray.analysis.joint.evidence import compare_sides, side_of
from cleanai_ray.analysis.joint.pairs import DENSE
from cleanai_ray.analysis.joint.questions import ask
from cleanai_ray.analysis.joint.study import JointStudy, join_runs
from cleanai_ray.analysis.numbers import plural, signed


@dataclass(frozen=True, eq=False)
class JointFindings:
    """Everything that a joint report says.

    Attributes:
        joint: The runs.
        answers: The questions.
        reference: The method that `differences` are from, or `dense`.
        differences: Every method minus the reference at each ratio or budget; all intervals hold at once.
        choices: What to take at each ratio or budget.
        controls: Pruned models minus controls; all intervals hold at once.
    """

    joint: JointStudy
    answers: tuple[JointAnswer, ...]
    reference: str
    differences: tuple[JointRow, ...]
    choices: tuple[JointChoice, ...]
    controls: tuple[JointRow, ...]

    @property
    def primary(self) -> JointAnswer | None:
        """The answer to the primary question; None where the study files declare none."""
        return next((answer for answer in self.answers if answer.is_primary), None)

    @property
    def body(self) -> str:
        """The runs in words, and how many of those that are planned are in."""
        joint = self.joint
        count = len(joint.runs)
        told = plural(count, "run") if joint.num_planned is None else f"{count} of {joint.num_planned} planned runs"
        return f"{told}: {', '.join(map(self._trainings, joint.networks))}"

    def _trainings(self, network: str) -> str:
        return f"{network} ({plural(sum(run.network == network for run in self.joint.runs), 'training')})"

    @property
    def is_whole(self) -> bool:
        """True if all runs that are planned are in, as far as that is known."""
        return self.joint.num_planned is None or len(self.joint.runs) >= self.joint.num_planned

    @property
    def headline(self) -> str:
        """The answer to the primary question and what to take, in a few sentences."""
        parts = []
        if self.primary is not None and self.primary.rows:
            told = [f"{row.amount}: {row.answer} ({effect_text(row.found)})" for row in self.primary.rows]
            parts.append(f"{self.primary.question} {'; '.join(told)}.")
        if self.choices:
            told = [f"{one.name} at {one.amount} ({effect_text(one.against_dense)})" for one in self.choices]
            parts.append(f"What to take, with its difference from dense: {'; '.join(told)}.")
        if not self.is_whole:
            count, planned = len(self.joint.runs), self.joint.num_planned
            parts.append(f"This is not the whole study: {count} of {planned} runs are in.")
        return " ".join(parts) or "Nothing can be compared over all networks."


def find_jointly(studies: Sequence[StudyFrames], num_planned: int | None = None) -> JointFindings:
    """Return what several runs say together.

    Args:
        studies: Their frames.
        num_planned: Runs that the whole study is to have; None where that is not known.

    Raises:
        ArtifactError: When they cannot be joined; see `join_runs`.
    """
    joint = join_runs(studies, num_planned)
    choices = choose_jointly(joint)
    reference = reference_of(joint.runs[0].study)
    return JointFindings(
        joint, ask(joint), reference, _differences(joint, reference), choices, compare_with_controls(joint, choices)
    )


def _differences(joint: JointStudy, reference: str) -> tuple[JointRow, ...]:
    second = DENSE if reference == DENSE else side_of(joint, reference)
    found = []
    for amount in joint.amounts:
        for method in joint.methods:
            one = None if method == reference else compare_sides(joint, amount, side_of(joint, method), second)
            if one is not None:
                found.append(JointRow(amount, method, one))
    shown = sum(row.found.narrowest is not None for row in found)
    return tuple(replace(row, found=row.found.among(shown)) for row in found)


def effect_text(found: JointDifference) -> str:
    """Write an effect in points with the interval of the widest scope in which it is told, else of the narrowest."""
    scope = found.told or found.narrowest
    span = "" if scope is None else f", {interval_text(found, scope)}"
    return f"{signed(found.effect)} points{span}"


def sureness(findings: JointFindings) -> tuple[str, ...]:
    """Return sentences that say how sure the primary answer and the choices are, and what would change them."""
    told = [_of_primary(row) for row in (findings.primary.rows if findings.primary is not None else ())]
    for choice in findings.choices:
        against = choice.against_runner_up
        if against is not None and choice.runner_up is not None:
            clear = "more accurate beyond doubt" if against.told and against.effect > 0 else "not told apart from it"
            told.append(
                f"{choice.amount}: {choice.name} against the runner-up, {choice.runner_up}: "
                f"{effect_text(against)}; {clear}."
            )
    return tuple(told)


def _of_primary(row: JointRow) -> str:
    """Say in which scope the primary answer holds at one ratio or budget, and what it would take where it does not."""
    found, where = row.found, f"The primary question at {row.amount}"
    if found.told == LIKE_THESE:
        return f"{where}: the answer holds for networks like these."
    words = f"{where}: the answer holds for {found.told} alone." if found.told else f"{where}: {CANNOT_TELL}."
    if found.told is None:
        if found.few_draws is not None:
            return f"{words} Draws of calibration images that all runs have: {found.few_draws}; it takes three."
        if found.detectable is None:
            if found.num_runs - len(found.by_network) < FEWEST_FREEDOM:
                return f"{words} No network was trained often enough to tell any difference."
            return f"{words} All trainings have the same effect, which does not tell how others would vary."
        words += f" A difference of {found.detectable:.2f} points would have been found four times in five."
    if found.like_these is None:
        return f"{words} Of networks like these nothing can be said from {plural(len(found.by_network), 'network')}."
    needed = found.networks_needed
    count = "more than a thousand" if needed is None else str(needed)
    return f"{words} For networks like these, it takes {count} of them to tell a difference as large as the one seen."
