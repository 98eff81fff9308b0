"""Questions with images, copies, models near chance, several budgets, and a primary one."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from report.tables import study_of
from report.with_images import study_with_images

from cleanai_ray.analysis.answers import Answer
from cleanai_ray.analysis.cells import gather
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.questions import answer_questions
from cleanai_ray.analysis.questions.base import Evidence
from cleanai_ray.config.study import parse_study
from cleanai_ray.errors import StudyError

N = 1500


def answers_of(study: StudyFrames) -> dict[str, Answer]:
    return {answer.key: answer for answer in answer_questions({"study": study})}


def evidence_of(study: StudyFrames) -> Evidence:
    return Evidence({"study": study}, gather({"study": study}))


def drawn(generator: np.random.Generator, *, lead: float = 0.0, luck: float = 0.005) -> StudyFrames:
    """Coverage and magnitude in two cells and four draws: images of their own difficulty, draws of their own luck."""
    difficulty = generator.random(N)
    ease = {name: generator.normal(0, 0.03, N) for name in ("coverage", "magnitude")}  # one finds other images hard
    trials, hits = [], []
    for method, ratio, draw in itertools.product(ease, (0.3, 0.5), range(4)):
        chance = 0.85 - 0.1 * (ratio > 0.4) + lead * (method == "coverage") + generator.normal(0, luck)
        trials.append({"method": method, "ratio": ratio, "calibration_seed": draw, "calibration_samples": 64})
        trials[-1]["coverage_metric"] = "apoz" if method == "coverage" else None
        hits.append(difficulty + ease[method] + generator.normal(0, 0.02, N) < chance)
    return study_with_images(trials, hits, difficulty < 0.93, np.zeros(N, dtype=bool))


def test_other_images_widen_the_interval() -> None:
    study = drawn(np.random.default_rng(0))
    with_images = evidence_of(study).compare("coverage", "magnitude")
    without = evidence_of(replace(study, correct=study.correct.clear())).compare("coverage", "magnitude")
    assert with_images.effect == pytest.approx(without.effect)
    assert with_images.has_images
    assert not without.has_images
    assert with_images.error is not None
    assert without.error is not None
    assert with_images.error > without.error


def test_equal_methods_are_seldom_told_apart_and_the_truth_is_covered() -> None:
    alarms = covered = 0
    for seed in range(200):
        found = evidence_of(drawn(np.random.default_rng(seed))).compare("coverage", "magnitude")
        assert found.low is not None
        assert found.high is not None
        alarms += not found.low <= 0 <= found.high
        lead = evidence_of(drawn(np.random.default_rng(1000 + seed), lead=0.02)).compare("coverage", "magnitude")
        assert lead.low is not None
        assert lead.high is not None
        covered += lead.low <= 2.0 <= lead.high
    assert alarms <= 18  # of 200 at 5 %: 18 or fewer with a probability of 99 %
    assert covered >= 182


def near(label: str, ratio: float, mode: str, steps: int, seed: int) -> float:
    return 91.0 - 10 * ratio + 0.1 * seed + 0.2 * (mode == "global") + (label == "magnitude") * (0.5 + 0.05 * seed)


def test_pairs_near_chance_are_left_out() -> None:
    def before(label: str, ratio: float, mode: str, steps: int, seed: int) -> float:
        if ratio > 0.4:  # both have lost nearly all: chance is 10 %, and a tenth of the lead over it 8.3 points more
            return 12.0 + 4 * (label == "magnitude")
        return 60 + 5 * (label == "magnitude") + 0.3 * seed * (label == "magnitude") + seed + 2 * (mode == "global")

    study = study_of(near, labels=("coverage/apoz", "magnitude"), pruned=before)
    found = evidence_of(study).compare("magnitude", "coverage", "pruned")
    assert (found.num_pairs, found.num_near_chance) == (6, 6)
    assert found.effect == pytest.approx(5.3)


def test_a_cell_that_is_a_copy_of_another_counts_once() -> None:
    def same(label: str, ratio: float, mode: str, steps: int, seed: int) -> float:
        return 91.0 - 10 * ratio + (label == "magnitude") * (0.5 + ratio)

    found = evidence_of(study_of(same, labels=("coverage/apoz", "magnitude"), ratios=(0.3, 0.5))).compare(
        "magnitude", "coverage"
    )
    assert (found.num_units, found.num_copies) == (2, 2)
    assert found.low is None


def test_draws_that_are_part_of_each_other_are_one_draw() -> None:
    one = study_of(near, labels=("coverage/apoz", "magnitude"), seeds=(0, 1, 2))
    parts = [
        one.results.with_columns(
            pl.lit(count, dtype=pl.Int64).alias("calibration_samples"),
            pl.col("seed").alias("calibration_seed"),
            pl.lit(0, dtype=pl.Int64).alias("seed"),
            pl.concat_str("trial_id", pl.lit(f"-n{count}")).alias("trial_id"),
            pl.col("accuracy") + 0.0001 * place,
        )
        for place, count in enumerate((128, 1024))
    ]
    found = evidence_of(replace(one, results=pl.concat(parts))).compare("magnitude", "coverage")
    assert found.num_pairs == 24
    assert (found.unit, found.freedom) == ("draws", 2)  # three draws, not six


def test_an_interaction_is_not_averaged_away() -> None:
    def turns(label: str, ratio: float, mode: str, steps: int, seed: int) -> float:
        lead = (4.0 if ratio < 0.4 else -2.0) + 0.05 * seed
        return 91 - 10 * ratio + 0.1 * seed * (mode == "global") + (label == "coverage/apoz") * lead

    answer = answers_of(study_of(turns, labels=("coverage/apoz", "magnitude")))["b1"]
    assert answer.verdict == "cannot tell"
    assert "ratio 0.3 +4.05 (" in answer.sentence
    assert f"ratio 0.5 {chr(0x2212)}1.95 (" in answer.sentence
    assert "It depends on what is asked for" in answer.sentence


def test_what_could_be_told_stands_beside_what_cannot() -> None:
    random = np.random.default_rng(0)
    study = study_of(lambda *_: 90 + random.normal(0, 0.5), labels=("coverage/apoz", "magnitude"))
    answer = answers_of(study)["b1"]
    assert answer.verdict == "cannot tell"
    assert "points on would be found four times in five" in answer.sentence


def test_the_primary_question_is_tested_alone_and_all_others_together() -> None:
    random = np.random.default_rng(1)
    labels = ("coverage/apoz", "magnitude", "wanda", "taylor", "random")
    study = study_of(lambda label, *_: 90 + 0.3 * (label == "magnitude") + random.normal(0, 0.1), labels=labels)
    alone = evidence_of(study).compare("coverage", "magnitude")
    explored = answers_of(study)["b1"]
    declared = answers_of(replace(study, study={"questions": {"primary": "b1"}}))
    assert not explored.is_primary
    assert [key for key, answer in declared.items() if answer.is_primary] == ["b1"]
    assert declared["b1"].p_value == pytest.approx(alone.p_value)
    assert (declared["b1"].low, declared["b1"].high) == pytest.approx((alone.low, alone.high))
    assert explored.low is not None
    assert alone.low is not None
    assert explored.low < alone.low


def test_an_answer_that_rests_on_one_metric_is_none() -> None:
    random = np.random.default_rng(2)
    leads = {"coverage/frequency": -30.0, "coverage/apoz": 0.0, "coverage/entropy": 0.0, "magnitude": 0.0}

    def accuracy(label: str, *_: object) -> float:
        return 85 + leads[label] * (1 + random.normal(0, 0.05)) + random.normal(0, 0.2)

    study = study_of(accuracy, labels=tuple(leads))
    answer = answers_of(study)["b1"]
    assert answer.effect == pytest.approx(-10, abs=1)
    assert answer.verdict == "cannot tell"
    assert "Without frequency the interval holds zero" in answer.sentence
    declared = answers_of(replace(study, study={"questions": {"coverage_metric": "apoz"}}))["b1"]
    assert declared.effect == pytest.approx(0, abs=0.3)
    assert declared.num_pairs == 12


def test_a_method_whose_modes_are_the_same_says_nothing_of_modes() -> None:
    random = np.random.default_rng(3)

    def accuracy(label: str, ratio: float, mode: str, steps: int, seed: int) -> float:
        if label == "reconstruction":
            return 88 - ratio + 0.1 * seed
        return 90 - ratio - 2.0 * (mode == "global") + random.normal(0, 0.1)

    answer = answers_of(study_of(accuracy, labels=("wanda", "reconstruction", "taylor")))["e"]
    assert answer.effect == pytest.approx(-2.0, abs=0.1)
    assert "both modes are the same there: reconstruction" in answer.sentence


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"primary": "b7"}, "questions.primary: 'b7' is not a question"),
        ({"coverage_metric": "apzo"}, "questions.coverage_metric: 'apzo' is not a coverage metric"),
    ],
)
def test_a_question_that_is_none_is_refused(section: dict, said: str) -> None:
    study = {
        "model": {"name": "resnet20", "input_shape": [1, 8, 8]},
        "data": {"name": "digits"},
        "sweep": {"methods": ["magnitude"], "ratios": [0.3]},
    }
    assert parse_study({**study, "questions": {"primary": "b1"}}).questions.primary == "b1"
    with pytest.raises(StudyError, match=said):
        parse_study({**study, "questions": section})
