"""Whether two trials are told apart: image by image, not by whether their own intervals overlap."""

from __future__ import annotations

import numpy as np
import pytest
from report.with_images import DECIDES, DENSE, right, study_with_images

from cleanai_ray.analysis.findings import find
from cleanai_ray.analysis.intervals import interval_of


def moved(count: int) -> np.ndarray:
    """Of 1,000 test images 930 are right, `count` of which are others than the first 930."""
    place = np.arange(len(DECIDES)) % 1000
    other = (place < 930 - count) | ((place >= 930) & (place < 930 + count))
    return np.where(DECIDES, place < 920, other)


@pytest.mark.parametrize(
    ("second", "is_separable"), [(right(910, 912), True), (moved(60), False)], ids=["18 images lost", "as many gained"]
)
def test_two_trials_whose_intervals_overlap_are_told_apart_by_the_images_they_differ_in(
    second: np.ndarray, is_separable: bool
) -> None:
    trials = [{"method": "taylor"}, {"method": "magnitude"}]
    study = study_with_images(trials, [right(930, 930), second], DENSE, DECIDES)
    (cell,) = find(study).cells
    assert cell.runner_up is not None
    own, other = interval_of(cell.trial), interval_of(cell.runner_up)
    assert own is not None
    assert other is not None
    assert own.overlaps(other)
    # McNemar's exact test: 18 coins that all fall on one side have p = 2 / 2^18; 60 against 60 have p = 1.
    assert cell.is_separable == is_separable
    assert cell.detectable is not None
