"""Scores of other tasks may be small, so that a few points are most of what the dense model has."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest
from report.with_images import DECIDES, MOST_ACCURATE, right, study_with_images

from cleanai_ray.analysis.chosen import reported_row, selection_view
from cleanai_ray.analysis.findings import find
from cleanai_ray.analysis.risks import find_risks

DENSE = right(40, 40)


@pytest.mark.parametrize(("kept", "taken"), [(33, True), (31, False)])
def test_a_fifth_of_the_score_may_be_lost_whatever_the_points(kept: int, taken: bool) -> None:
    """Of 4.0 %, a fifth leaves 3.2 %: less than a point is lost either way."""
    columns = {"metric": "mAP", "num_classes": None}
    study = study_with_images([columns], [right(kept, kept)], DENSE, DECIDES, study={})
    assert study.choice.is_recommended == taken
    assert any(risk.is_blocking for risk in find_risks(study)) != taken


def test_a_score_is_reported_beside_the_dense_one_of_the_same_images() -> None:
    """Perplexities on all images, on those that decide and on the others: a report tells the last two apart."""
    scores = {"score": 8.0, "score_validation": 10.0, "score_test": 6.0}
    dense = {"score_dense": 5.0, "score_validation_dense": 6.5, "score_test_dense": 4.0}
    columns = {"metric": "perplexity", "num_classes": None, **scores, **dense}
    study = study_with_images([columns], [right(36, 38)], DENSE, DECIDES, study={})
    (trial_id,) = study.ok["trial_id"]
    reported = reported_row(study, trial_id, has_test=True)
    assert (reported["score"], reported["score_dense"]) == (6.0, 4.0)
    deciding = selection_view(study).ok.row(0, named=True)
    assert (deciding["score"], deciding["score_dense"]) == (10.0, 6.5)
    sentence = find(study).headline.sentence
    assert "perplexity 6 (token probability" in sentence
    assert "against the dense model's perplexity 4 (token probability" in sentence
    assert "points" not in sentence  # which would be of the probability, and below where the perplexity is above


@pytest.mark.parametrize("has_count", [True, False])
def test_a_dense_score_that_is_not_of_the_same_images_is_unknown(has_count: bool) -> None:
    """An older table has the dense model's score on all images alone, and perhaps not how many those of a role are."""
    old = {f"{name}_{role}_dense": None for name in ("accuracy", "score") for role in ("validation", "test")}
    old |= {} if has_count else {"num_validation": None, "num_test": None}
    study = study_with_images([{"num_classes": 10}], [right(36, 38)], DENSE, DECIDES, study=MOST_ACCURATE)
    kinds = study.results.schema
    results = study.results.with_columns(pl.lit(value, kinds[name]).alias(name) for name, value in old.items())
    study = replace(study, results=results)
    (trial_id,) = study.ok["trial_id"]
    for row in (reported_row(study, trial_id, has_test=True), selection_view(study).ok.row(0, named=True)):
        assert (row["accuracy_dense"], row["loss_points"]) == (None, None)
        assert row["num_evaluated"] == (1000 if has_count else None)
    sentence = find(study).headline.sentence
    assert "the dense model" not in sentence
    assert ("1000 test images" in sentence) == has_count


def test_points_of_accuracy_are_judged_as_points() -> None:
    columns = {"metric": "accuracy", "num_classes": None}
    study = study_with_images([columns], [right(31, 31)], DENSE, DECIDES, study=MOST_ACCURATE)
    assert study.choice.is_recommended
