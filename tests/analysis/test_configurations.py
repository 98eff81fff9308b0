"""A configuration's numbers are those of all its replicates, and are never told as if they were one trial's own."""

from __future__ import annotations

import numpy as np
import pytest
from report.with_images import study_with_images

from cleanai_ray.analysis.chosen import COSTS, selection_view
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.storage.schemas import RESULTS

N = 1000
ALL_REPORT = np.zeros(N, dtype=bool)


def right(count: int) -> np.ndarray:
    """The first so many images are right."""
    return np.arange(N) < count


DENSE = right(930)


def replicates(hits: list[int], limits: dict | None = None, **columns: list) -> StudyFrames:
    """Trials of one configuration, a draw each, scored on images that also choose."""
    trials = [
        {"method": "hessian", "calibration_seed": draw, **{name: values[draw] for name, values in columns.items()}}
        for draw in range(len(hits))
    ]
    study = None if limits is None else {"recommend": limits}
    return study_with_images(trials, [right(count) for count in hits], DENSE, ALL_REPORT, study=study)


def test_the_accuracy_of_a_trial_is_its_own_and_the_mean_is_told_beside_it() -> None:
    choice = replicates([920, 900, 880], {"max_macs": 1.0}, macs=[50, 50, 50], macs_dense=[100] * 3).choice
    assert choice.trial is not None
    assert choice.trial["accuracy"] == pytest.approx(0.92)
    sentence = choice.recommendation.sentence
    assert f"trial {choice.trial['trial_id']}: 92.0 % top-1" in sentence
    assert "3 trials that differ in seed or draw alone; their mean is 90.0 %" in sentence


def test_what_is_nearest_to_a_limit_is_a_configuration() -> None:
    found = replicates([920, 900, 880], {"max_accuracy_loss": 1.0}).choice.recommendation
    assert found.trial is None
    (missing,) = found.missing
    assert "The nearest loses 3 points (3 trials like hessian-0, taken together)" in missing  # 93 % less 90 %
    lost = replicates([700, 600, 500]).choice.recommendation  # no limit: more than 5 points are too many
    assert "the best (3 trials like hessian-0, taken together) reaches 60.0 %, 33.0 points below" in lost.missing[0]


def test_costs_are_the_medians_of_the_replicates_that_have_them() -> None:
    speeds = {"speedup_b1": [3.0, 1.0, 1.2, None], "speedup_b1_low": [2.9, 0.9, 1.1, None]}
    sizes = {"macs": [40, 60, 50, 70], "size_bytes": [4, 6, 5, 7]}
    (row,) = selection_view(replicates([920, 900, 880, 860], **speeds, **sizes)).ok.to_dicts()
    assert row["trial_id"] == "hessian-0"
    assert row["speedup"] == pytest.approx(1.2)
    assert row["speedup_low"] == pytest.approx(1.1)
    assert (row["macs"], row["size_bytes"]) == (55, 5)
    assert (row["num_replicates"], row["num_timed"]) == (4, 3)


def test_a_configuration_is_not_fast_because_its_most_accurate_trial_is() -> None:
    columns = {"speedup_b1": [3.0, 1.0, 1.2], "macs": [50] * 3, "macs_dense": [100] * 3}
    assert replicates([920, 919, 918], {"min_speedup": 1.5}, **columns).choice.recommendation.trial is None
    found = replicates([920, 919, 918], {"min_speedup": 1.1}, **columns).choice.recommendation
    assert found.trial is not None
    assert found.trial["speedup"] == pytest.approx(3.0)
    assert "The median of the 3 timed trials that differ in seed or draw alone is 1.20" in found.cost


def test_every_column_of_a_cost_is_one_of_the_table() -> None:
    assert set(COSTS) <= set(RESULTS.names)
    measured = {name for name in RESULTS.names if name.startswith(("speedup", "latency_ms")) and "p90" not in name}
    assert measured <= set(COSTS)
