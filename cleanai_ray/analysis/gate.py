"""The gate of a continuous integration: passed only if a trial's whole interval is within the limits (non-inferiority).

The accuracy lost is told on the images that decided nothing, where the study set some aside; where it did not, what the
choice flatters is taken off, as in the verdict of the report. With 95 % intervals, a model that is just beyond a limit
passes 2.5 times in 100.

Scores of other tasks than classification have no interval, since single answers are not kept: the score itself must be
within the limit. Where a low score is good (perplexity, RMSE), the limit is on its rise, in its own unit; else it is on
the points of a hundred that it loses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cleanai_ray.analysis.chosen import reported_row
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.image_evidence import against_dense
from cleanai_ray.analysis.named_trial import RECOMMENDED, named_trial
from cleanai_ray.analysis.numbers import MINUS, counted, times
from cleanai_ray.analysis.risks import find_risks
from cleanai_ray.analysis.score_words import dense_score, is_counted, score_number, words_of
from cleanai_ray.analysis.speed import where_timed
from cleanai_ray.storage.image_schemas import TEST


@dataclass(frozen=True)
class GateResult:
    """The outcome of a gate, and the sentence that says why."""

    passed: bool
    sentence: str


@dataclass(frozen=True)
class _Check:
    passed: bool
    words: str


def judge_gate(
    study: StudyFrames, *, max_loss: float | None, min_speedup: float | None, trial: str = RECOMMENDED
) -> GateResult:
    """Return whether a trial keeps to limits with its whole interval.

    Args:
        study: The study.
        max_loss: The accuracy that may be lost against the dense model, in percentage points: the upper end of the 95 %
            interval must be below it. Of a score without an interval, the loss itself must be, in percentage points or,
            where a low score is good, in the unit of the score. None: not limited.
        min_speedup: The speed-up that is needed, in the target or at batch 1: the lower end of its 95 % interval must
            be at least this. None: not limited.
        trial: As `named_trial` takes it. Where no trial is recommended, the gate is not passed.

    Raises:
        ArtifactError: When there is no trial of this id.
    """
    if trial == RECOMMENDED and not study.choice.is_recommended:
        return GateResult(False, _sentence("not passed", study.choice.recommendation.in_full))
    trial_id = named_trial(study, trial)
    row = reported_row(study, trial_id, has_test=study.choice.has_test_images)
    checks = []
    if max_loss is not None:
        checks.append(_loss(study, row, max_loss))
    if min_speedup is not None:
        checks.append(_speedup(study, row, min_speedup))
    passed = all(check.passed for check in checks)
    blocking = [risk.sentence for risk in find_risks(study) if risk.is_blocking]
    if passed and blocking:
        return GateResult(False, _sentence("not passed", f"the report takes no trial: {blocking[0]}"))
    told = [check.words for check in checks if passed or not check.passed]
    return GateResult(passed, _sentence("passed" if passed else "not passed", f"trial {trial_id} {'; '.join(told)}"))


def _sentence(outcome: str, why: str) -> str:
    return f"Gate {outcome}: {' '.join(why.split()).rstrip('.')}."


def _loss(study: StudyFrames, row: dict[str, Any], limit: float) -> _Check:
    has_test = study.choice.has_test_images
    allowed = f"less than {limit:g} allowed"
    if not is_counted(row):
        return _score_loss(row, limit, allowed, has_test=has_test)
    found = against_dense(study, row, TEST if has_test else None)
    if found is None:
        return _Check(False, f"has no interval of the accuracy lost in its tables ({allowed})")
    flattered = study.choice.optimism or 0.0
    low, high = (flattered - end for end in reversed(found.interval))
    lost = flattered - found.effect
    images = counted(f"{found.num_images:,}", "image") + (" that decided nothing" if has_test else "")
    taken = f", {flattered:.2f} of them for the choice on the same images" if flattered else ""
    words = f"loses {_points(lost)} points of accuracy{taken}"
    words += f" (95 % interval {_points(low)} to {_points(high, limit)}, {allowed}) on {images}"
    return _Check(high < limit, words)


def _score_loss(row: dict[str, Any], limit: float, allowed: str, *, has_test: bool) -> _Check:
    """Return the check of a score that is no share of right answers, in its own unit and direction."""
    words, number = words_of(row["metric"]), row["num_evaluated"]
    before, after = (dense_score(row), row["score"]) if words.is_inverted else (row["accuracy_dense"], row["accuracy"])
    if before is None or after is None:
        return _Check(False, f"has no {words.name} in its tables to compare with the dense model's ({allowed})")
    if words.is_inverted:
        lost, ends = after - before, f"from {score_number(before)} to {score_number(after)}"
        changed = f"{'raises' if lost >= 0 else 'lowers'} {words.name} by {_digits(abs(lost), limit)}, {ends}"
    else:
        lost, ends = 100 * (before - after), f"from {100 * before:.2f} % to {100 * after:.2f} %"
        changed = f"{'loses' if lost >= 0 else 'gains'} {_digits(abs(lost), limit)} points of {words.name}, {ends}"
    samples = f"{words.sample}s" if number is None else f"{number:,} {words.sample}{'' if number == 1 else 's'}"
    where = f"{samples} that decided nothing" if has_test else f"{samples}, which may also have chosen it"
    unsure = "without an interval, as single answers are not kept"
    return _Check(lost < limit, f"{changed} ({allowed}; {unsure}) on {where}")


def _points(value: float, limit: float | None = None) -> str:
    return _digits(value, limit).replace("-", MINUS)


def _digits(value: float, limit: float | None) -> str:
    """Return a number with two digits after the point, or as many as tell it from a limit that it is not."""
    for digits in range(2, 7):
        text = f"{round(value, digits) + 0.0:.{digits}f}"
        if limit is None or value == limit or float(text) != limit:
            break
    return text


def _speedup(study: StudyFrames, row: dict[str, Any], limit: float) -> _Check:
    where, needed = where_timed(study.target), f"at least {limit:g} needed"
    speed, low, high = row["speedup"], row["speedup_low"], row["speedup_high"]
    if speed is None:
        return _Check(False, f"was not timed {where} ({needed})")
    if low is None or high is None:
        return _Check(False, f"has {times(speed)} the speed {where}, without an interval ({needed})")
    words = f"has {times(speed)} the speed {where} (95 % interval {_digits(low, limit)} to {high:.2f}, {needed})"
    return _Check(low >= limit, words)
