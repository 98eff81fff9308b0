"""Whether a trial meets the limits that its study states, and what a run and an export say of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from report.with_images import DECIDES, DENSE, right, study_with_images

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.limit_verdict import limit_note, limit_verdicts, unmet_line


def study_of(losses: list[int], **limits: float) -> StudyFrames:
    """A study whose trials lose so many of 1,000 test images; on 1,000 others, which decide, 0.1 points and more."""
    hits = [right(929 - number, 930 - loss) for number, loss in enumerate(losses)]
    return study_with_images([{}] * len(losses), hits, DENSE, DECIDES, study={"recommend": limits})


@pytest.mark.parametrize(
    ("loss", "limit", "verdict"),
    [
        (2, 5.0, "met"),
        (9, 1.0, "cannot tell"),  # 0.9 points on the images that report, and perhaps more than one
        (60, 1.0, "not met"),  # 6 points: the whole interval is beyond the limit
        (2, 0.05, "not met"),  # the images that decide have it 0.1 points below
    ],
)
def test_the_whole_interval_is_on_one_side_of_a_limit_or_nothing_can_be_told(
    loss: int, limit: float, verdict: str
) -> None:
    study = study_of([loss], max_accuracy_loss=limit)
    (found,) = limit_verdicts(study, "magnitude-0")
    assert found.verdict == verdict
    assert "on the images that decide" in found.why
    assert "1000 test images" in found.why
    assert bool(limit_note(study, "magnitude-0")) == (verdict == "not met")


def test_a_limit_of_what_was_not_measured_is_no_limit_that_is_missed() -> None:
    study = study_of([2], max_latency_ms=3.0)
    (found,) = limit_verdicts(study, "magnitude-0")
    assert (found.verdict, found.why) == ("cannot tell", "it was not measured")


def test_without_limits_there_is_nothing_to_say() -> None:
    study = study_of([60])
    assert limit_verdicts(study, "magnitude-0") == []
    assert unmet_line(study, study.choice) == ""


def test_a_run_says_which_limit_no_trial_meets_and_what_may_help() -> None:
    study = study_of([2, 60], max_accuracy_loss=0.05)
    line = unmet_line(study, study.choice)
    assert line.startswith(
        "No trial meets the limit of the study: accuracy lost at most 0.05 points. The nearest loses "
    )
    assert "loses 0.15 points on the 1000 images that decide" in line  # of two like trials, 0.1 and 0.2
    assert line.endswith("or another limit (recommend).")
    met = study_of([2, 60], max_accuracy_loss=5.0)
    assert unmet_line(met, met.choice) == ""


def test_limits_that_only_slower_trials_meet_need_no_milder_budget() -> None:
    study = study_of([2], max_accuracy_loss=5.0)
    slower = replace(study.choice.recommendation, trial=None, sentence="All of them are slower.", missing=())
    choice = replace(study.choice, is_recommended=False, recommendation=slower)
    assert unmet_line(study, choice) == "All of them are slower."
