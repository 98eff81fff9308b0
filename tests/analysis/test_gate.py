"""The gate takes a trial only if the whole interval keeps to the limit, and says why in one sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from report.with_images import DECIDES, DENSE, MOST_ACCURATE, N, right, study_with_images

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.gate import judge_gate
from cleanai_ray.analysis.named_trial import named_trial
from cleanai_ray.analysis.paired import PairedDifference
from cleanai_ray.errors import ArtifactError


def study_of(losses: list[int], decides: np.ndarray = DECIDES, **columns: Any) -> StudyFrames:
    """A study whose trials lose so many of 1,000 test images, and gain none."""
    hits = [right(929 - number, 930 - loss) for number, loss in enumerate(losses)]
    return study_with_images([columns] * len(losses), hits, DENSE, decides, study=MOST_ACCURATE)


@pytest.mark.parametrize("loss", [2, 9, 30])
def test_the_upper_end_of_the_loss_decides(loss: int) -> None:
    study = study_of([loss])
    most = -PairedDifference(lost=loss, gained=0, num_images=1000).interval[0]
    assert most > loss / 10, "the interval reaches beyond the estimate"
    assert judge_gate(study, max_loss=most + 0.01, min_speedup=None).passed
    refused = judge_gate(study, max_loss=most - 0.01, min_speedup=None)
    assert not refused.passed
    assert refused.sentence.startswith("Gate not passed: trial magnitude-0 loses ")
    facts = (f"{loss / 10:.2f} points", f"to {most:.2f}", "1,000 images that decided nothing")
    assert all(fact in refused.sentence for fact in facts)


def test_a_loss_within_the_limit_is_not_enough() -> None:
    # 0.9 points are lost, and more than 1 may be: with 1,000 images that cannot be told.
    assert not judge_gate(study_of([9]), max_loss=1.0, min_speedup=None).passed
    assert judge_gate(study_of([2]), max_loss=1.0, min_speedup=None).passed


@pytest.mark.parametrize(
    ("low", "high", "passed"), [(1.5, 1.9, True), (1.49, 1.9, False), (None, None, False), (1.6, 1.7, True)]
)
def test_the_lower_end_of_the_speed_up_decides(low: float | None, high: float | None, passed: bool) -> None:
    study = study_of([2], speedup_b1=1.65, speedup_b1_low=low, speedup_b1_high=high)
    found = judge_gate(study, max_loss=1.0, min_speedup=1.5)
    assert found.passed == passed
    assert "1.65\N{MULTIPLICATION SIGN} the speed at batch 1" in found.sentence
    assert ("without an interval" in found.sentence) == (low is None)
    assert ("loses" in found.sentence) == passed, "what was not passed is named, and nothing else"


def test_the_end_that_decides_is_told_with_the_digits_that_decide() -> None:
    found = judge_gate(
        study_of([2], speedup_b1=1.6, speedup_b1_low=1.4997, speedup_b1_high=1.7), max_loss=None, min_speedup=1.5
    )
    assert not found.passed
    assert "1.4997 to 1.70, at least 1.5 needed" in found.sentence


def scored(metric: str, merits: tuple[float, float], scores: tuple[float | None, float | None]) -> StudyFrames:
    """A study with one trial of another task: what is compared, and the score itself, of the dense model and its own.

    Only the images that decided nothing have these; on the others, the trial loses nothing.
    """
    columns: dict[str, Any] = {
        "metric": metric,
        "accuracy": 0.9,
        "accuracy_dense": 0.9,
        "score": 1.0,
        "score_dense": 1.0,
    }
    for name, (dense, own) in {"accuracy": merits, "score": scores}.items():
        columns |= {f"{name}_test_dense": dense, f"{name}_test": own}
        columns |= {f"{name}_validation_dense": 0.9, f"{name}_validation": 0.9}
    row = {"num_test": 40, "num_validation": 40, "num_evaluated": 80, "lost": None, "gained": None, **columns}
    study = study_of([0])
    changed = study.results.with_columns(
        pl.lit(value, study.results.schema[name]).alias(name) for name, value in row.items()
    )
    return replace(study, results=changed, images=study.images.clear(), correct=study.correct.clear())


@pytest.mark.parametrize(
    ("metric", "merits", "scores", "lost", "facts"),
    [
        ("mIoU", (0.613, 0.601), (0.613, 0.601), 1.2, "loses 1.20 points of mIoU, from 61.30 % to 60.10 %"),
        ("mAP", (0.41, 0.43), (0.41, 0.43), -2.0, "gains 2.00 points of mAP, from 41.00 % to 43.00 %"),
        ("macro AP", (0.5, 0.47), (0.5, 0.47), 3.0, "loses 3.00 points of macro AP"),
        ("perplexity", (1 / 5, 1 / 6), (5.0, 6.0), 1.0, "raises perplexity by 1.00, from 5 to 6"),
        ("perplexity", (0.16, 0.2), (6.25, 5.0), -1.25, "lowers perplexity by 1.25, from 6.25 to 5"),
        ("RMSE", (0.75, 0.72), (0.5, 0.53), 0.03, "raises RMSE by 0.03, from 0.5 to 0.53"),
        ("errors (lower is better)", (1 / 5, 1 / 6), (4.0, 5.0), 1.0, "raises errors by 1.00, from 4 to 5"),
        ("balanced", (0.8, 0.77), (0.8, 0.77), 3.0, "loses 3.00 points of balanced"),
    ],
)
def test_another_score_is_limited_in_its_own_unit_and_direction(
    metric: str, merits: tuple[float, float], scores: tuple[float, float], lost: float, facts: str
) -> None:
    study = scored(metric, merits, scores)
    assert not study.choice.is_recommended or study.choice.has_test_images
    found = {
        limit: judge_gate(study, max_loss=max(0.0, limit), min_speedup=None, trial="best")
        for limit in (lost + 0.01, lost - 0.01)
    }
    assert found[lost + 0.01].passed
    assert found[lost - 0.01].passed == (lost < 0)
    for each in found.values():
        assert facts in each.sentence
        assert "without an interval, as single answers are not kept" in each.sentence
        assert " 40 " in each.sentence
        assert each.sentence.endswith("that decided nothing.")


def test_a_score_that_is_not_there_does_not_pass() -> None:
    found = judge_gate(scored("perplexity", (0.2, 0.0), (5.0, None)), max_loss=90.0, min_speedup=None, trial="best")
    assert not found.passed
    assert "has no perplexity in its tables" in found.sentence


def without(study: StudyFrames, *columns: str) -> StudyFrames:
    """A study whose tables were written before there were some columns."""
    kinds = study.results.schema
    return replace(study, results=study.results.with_columns(pl.lit(None, kinds[name]).alias(name) for name in columns))


def test_an_older_table_without_counts_is_judged_without_naming_them() -> None:
    study = without(scored("mIoU", (0.613, 0.601), (0.613, 0.601)), "num_test", "num_validation", "num_evaluated")
    found = judge_gate(study, max_loss=2.0, min_speedup=None, trial="best")
    assert found.passed
    assert found.sentence.endswith("single answers are not kept) on images that decided nothing.")
    assert "on test images, which decided nothing." in study.choice.recommendation.sentence


def test_a_dense_score_of_all_images_does_not_stand_for_that_of_the_test_images() -> None:
    study = without(scored("mIoU", (0.613, 0.601), (0.613, 0.601)), "accuracy_test_dense", "score_test_dense")
    found = judge_gate(study, max_loss=50.0, min_speedup=None, trial="best")
    assert not found.passed
    assert "has no mIoU in its tables to compare with the dense model's" in found.sentence


def test_what_was_not_measured_is_not_passed() -> None:
    assert "was not timed" in judge_gate(study_of([2]), max_loss=None, min_speedup=1.0).sentence
    study = study_of([2])
    bare = replace(
        study,
        results=study.results.with_columns(pl.lit(None, pl.Int64).alias("lost")),
        images=study.images.clear(),
        correct=study.correct.clear(),
    )
    found = judge_gate(bare, max_loss=90.0, min_speedup=None)
    assert not found.passed
    assert "no interval" in found.sentence


def test_where_the_same_images_chose_the_luck_is_taken_off() -> None:
    generator = np.random.default_rng(0)
    hits = [np.where(generator.random(N) < 0.05, ~DENSE, DENSE) for _ in range(20)]
    trials = [{"method": f"m{number}"} for number in range(20)]
    study = study_with_images(trials, hits, DENSE, np.zeros(N, dtype=bool), study=MOST_ACCURATE)
    choice = study.choice
    assert choice.optimism is not None
    assert choice.optimism > 0.3
    assert choice.against_dense is not None
    most = choice.optimism - choice.against_dense.interval[0]
    assert judge_gate(study, max_loss=most + 0.01, min_speedup=None).passed
    refused = judge_gate(study, max_loss=most - 0.01, min_speedup=None)
    assert not refused.passed
    assert f"{choice.optimism:.2f} of them for the choice on the same images" in refused.sentence


def test_any_trial_can_be_asked_for() -> None:
    study = study_of([2, 60])
    assert named_trial(study, "recommended") == named_trial(study, "best") == "magnitude-0"
    assert judge_gate(study, max_loss=1.0, min_speedup=None).passed
    other = judge_gate(study, max_loss=1.0, min_speedup=None, trial="magnitude-1")
    assert not other.passed
    assert "trial magnitude-1 loses 6.00 points" in other.sentence
    with pytest.raises(ArtifactError, match=r"'magnitude-7' .*allowed: recommended, best, magnitude-0, magnitude-1"):
        judge_gate(study, max_loss=1.0, min_speedup=None, trial="magnitude-7")


def test_without_a_recommended_trial_the_gate_is_closed_and_best_is_the_most_accurate() -> None:
    study = replace(study_of([2, 60]), study={"recommend": {"max_macs": 0.1}})
    found = judge_gate(study, max_loss=50.0, min_speedup=None)
    assert not found.passed
    assert "No trial meets the limit of the study" in found.sentence
    assert named_trial(study, "best") == "magnitude-0"
    with pytest.raises(ArtifactError, match="no recommended trial"):
        named_trial(study, "recommended")
