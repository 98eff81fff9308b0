"""Scores of other tasks may be small, so that a few points are most of what the dense model has."""

from __future__ import annotations

import pytest
from report.with_images import DECIDES, MOST_ACCURATE, right, study_with_images

from cleanai_ray.analysis.risks import find_risks

DENSE = right(40, 40)


@pytest.mark.parametrize(("kept", "taken"), [(33, True), (31, False)])
def test_a_fifth_of_the_score_may_be_lost_whatever_the_points(kept: int, taken: bool) -> None:
    """Of 4.0 %, a fifth leaves 3.2 %: less than a point is lost either way."""
    columns = {"metric": "mAP", "num_classes": None}
    study = study_with_images([columns], [right(kept, kept)], DENSE, DECIDES, study={})
    assert study.choice.is_recommended == taken
    assert any(risk.is_blocking for risk in find_risks(study)) != taken


def test_points_of_accuracy_are_judged_as_points() -> None:
    columns = {"metric": "accuracy", "num_classes": None}
    study = study_with_images([columns], [right(31, 31)], DENSE, DECIDES, study=MOST_ACCURATE)
    assert study.choice.is_recommended
