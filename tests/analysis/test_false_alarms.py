"""The answers of a whole study of equal methods: in at most five studies of a hundred is any of them wrong."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from report.tables import study_of

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.questions import answer_questions

LABELS = ("coverage/apoz", "coverage/entropy", "adaptive/apoz", "wanda", "magnitude", "taylor", "random")
NUM_STUDIES = 60


def equal(seed: int, before: float) -> StudyFrames:
    """Methods that are equal after repair, in three draws; before it, `before` points apart."""
    random = np.random.default_rng(seed)

    def after(label: str, ratio: float, *_: object) -> float:
        return 90 - 5 * ratio + random.normal(0, 0.3)

    def pruned(label: str, ratio: float, *_: object) -> float:
        return 60 - 20 * ratio + before * LABELS.index(label) + random.normal(0, 0.5)

    study = study_of(after, labels=LABELS, steps=(2,), pruned=pruned)
    # Seeds become draws of the calibration samples.
    drawn = study.results.with_columns(
        pl.col("seed").alias("calibration_seed"),
        pl.lit(0, dtype=pl.Int64).alias("seed"),
        pl.lit(64, dtype=pl.Int64).alias("calibration_samples"),
    )
    return StudyFrames(**{**vars(study), "results": drawn})


@pytest.mark.slow
@pytest.mark.parametrize("before", [0.0, 3.0], ids=["equal everywhere", "equal after repair"])
def test_no_answer_is_wrong_in_most_studies(before: float) -> None:
    wrong = 0
    for seed in range(NUM_STUDIES):
        study = equal(seed, before)
        verdicts = {answer.key: answer.verdict for answer in answer_questions({"study": study})}
        true_of_the_plan = {"f1"} if before else set()  # methods do differ from random before repair
        wrong += any(verdict != "cannot tell" for key, verdict in verdicts.items() if key not in true_of_the_plan)
    assert wrong / NUM_STUDIES <= 0.05


def test_every_question_with_an_interval_is_one_of_the_family() -> None:
    answers = {answer.key: answer for answer in answer_questions({"study": equal(0, 0.0)})}
    shown = [answer for answer in answers.values() if answer.low is not None]
    alone = {
        answer.key: answer
        for key in answers
        for answer in answer_questions({"study": StudyFrames(**{**vars(equal(0, 0.0)), "study": declared(key)})})
        if answer.key == key
    }
    assert {"b1", "g"} <= {answer.key for answer in shown}
    for answer in shown:
        own = alone[answer.key]
        assert answer.low is not None
        assert answer.high is not None
        assert own.low is not None
        assert own.high is not None
        # The primary question is tested alone, so that its interval is narrower than as one of many.
        assert own.high - own.low < answer.high - answer.low, answer.key


def declared(key: str) -> dict:
    return {"questions": {"primary": key}}


def test_what_cannot_be_told_comes_with_what_could_be() -> None:
    for seed in range(3):
        for answer in answer_questions({"study": equal(seed, 0.0)}):
            if answer.verdict == "cannot tell" and answer.effect is not None:
                assert "four times in five" in answer.sentence
                assert answer.detectable is not None
                threshold = {"g": 0.5, "h2": 0.95}.get(answer.key, 0.0)
                assert f"from {threshold + answer.detectable:.2f} " in answer.sentence


def test_where_there_is_no_interval_nothing_could_be_told() -> None:
    study = study_of(lambda label, *_: 90.0 + (label == "magnitude"), labels=LABELS, ratios=(0.3,), seeds=(0,))
    open_ones = [answer for answer in answer_questions({"study": study}) if answer.effect is not None]
    assert open_ones
    for answer in open_ones:
        if answer.low is None:
            assert answer.verdict == "cannot tell"
            assert "No difference can be told from so little" in answer.sentence


def test_where_nothing_can_be_tested_the_method_farthest_ahead_stands_against_random() -> None:
    points = {"magnitude": 80.0, "reconstruction": 92.0, "taylor": 91.0, "random": 90.0}
    study = study_of(lambda label, *_: points[label], labels=tuple(points), ratios=(0.3, 0.5), seeds=(0,))
    (answer,) = [answer for answer in answer_questions({"study": study}) if answer.key == "f1"]
    assert answer.verdict == "cannot tell"
    assert answer.effect == pytest.approx(2.0)
    assert answer.sentence.startswith("reconstruction, the farthest ahead of 3 methods, against random: +2.00 points")
