"""A study that sweeps its calibration samples: draws are replicates of a cell, and answer two questions themselves."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import polars as pl
import pytest
from report.tables import empty_tables, frame, study_of

from cleanai_ray.analysis.answers import Answer
from cleanai_ray.analysis.cells import gather
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.questions import answer_questions
from cleanai_ray.analysis.questions.base import Evidence
from cleanai_ray.analysis.risks import find_risks
from cleanai_ray.storage import schemas

Accuracy = Callable[[str, float, int, int], float | None]
"""Label, ratio, number of calibration samples and seed of their draw to an accuracy in per cent."""

RATIOS = (0.3, 0.5)
GRID = "local", "global"


def swept(
    accuracy: Accuracy,
    *,
    labels: tuple[str, ...],
    samples: tuple[int, ...],
    draws: tuple[int, ...] = (0, 1, 2),
    layers: Callable[[str, int, int], list[int]] | None = None,
) -> StudyFrames:
    """Return a study of four cells; `layers` is what a method removes of 8 channels with a number and a draw."""
    parts, removed = [], []
    for count, draw in itertools.product(samples, draws):
        one = study_of(
            # A mode costs all trials the same, so that its cells are no copies of the other's.
            lambda label, ratio, mode, *_, count=count, draw=draw: (
                None if (value := accuracy(label, ratio, count, draw)) is None else value - 0.25 * (mode == "global")
            ),
            labels=labels,
            ratios=RATIOS,
            modes=GRID,
            seeds=(0,),
        )
        rows = one.results.with_columns(
            pl.concat_str("trial_id", pl.lit(f"-n{count}-draw{draw}")).alias("trial_id"),
            pl.lit(count, dtype=pl.Int64).alias("calibration_samples"),
            pl.lit(draw, dtype=pl.Int64).alias("calibration_seed"),
        )
        parts.append(rows)
        for trial_id, method in rows.select("trial_id", "method").rows() if layers else ():
            channels = layers(method, count, draw)
            place = {"layer": "conv", "layer_index": 0, "group": "conv", "out_channels_dense": 8}
            removed.append({"trial_id": trial_id, **place, "removed_channels": channels})
    calibration = {"samples": list(samples), "seed": list(draws)}
    return StudyFrames(
        results=pl.concat(parts),
        study={"data": {"name": "d", "calibration": calibration}},
        **{**empty_tables(), "layers": frame(removed, schemas.LAYERS)},
    )


def answers_of(study: StudyFrames) -> dict[str, Answer]:
    return {answer.key: answer for answer in answer_questions({"study": study})}


def lead(label: str, ratio: float) -> float:
    """Leads that differ from cell to cell."""
    leads = {"coverage/apoz": 0.4, "coverage/entropy": 0.9, "wanda": 1.5, "magnitude": -0.5, "random": -6.0}
    return 90 - 10 * ratio + leads[label] * (1 + ratio)


LABELS = ("coverage/apoz", "coverage/entropy", "wanda", "magnitude", "random")


def test_draws_that_all_say_the_same_change_no_effect() -> None:
    studies = [
        swept(lambda label, ratio, *_: lead(label, ratio), labels=LABELS, samples=samples, draws=draws)
        for samples, draws in (((64,), (0,)), ((64, 256), (0, 1, 2)))
    ]
    one, many = (answers_of(study) for study in studies)
    for key in ("a", "b1", "c", "e", "f1"):
        assert one[key].effect is not None
        assert many[key].effect == pytest.approx(one[key].effect)
        assert many[key].num_pairs == 6 * one[key].num_pairs
    for first, second in (("coverage", "magnitude"), ("wanda", "coverage"), ("magnitude", "random")):
        few, more = (Evidence({"s": study}, gather({"s": study})).compare(first, second) for study in studies)
        # Draws are replicates: six times the trials of the same cells are no more cells.
        assert few.low is not None
        assert (more.low, more.high) == pytest.approx((few.low, few.high))


def test_pairs_share_their_draw() -> None:
    def accuracy(label: str, ratio: float, count: int, draw: int) -> float | None:
        if label == "magnitude" and draw == 1:
            return None
        return 80 + 5 * draw + count / 1000 + (1.0 if label.startswith("coverage") else 0.0)

    found = answers_of(swept(accuracy, labels=("coverage/apoz", "magnitude"), samples=(64, 256)))["b1"]
    assert found.effect == pytest.approx(1.0)
    assert (found.num_pairs, found.num_dropped) == (4 * 2 * 2, 4 * 2)


GAIN = {64: 0.0, 512: 0.95, 1024: 1.0}


@pytest.mark.parametrize(("samples", "effect", "verdict"), [((1024, 64, 512), 1.0, "yes"), ((512, 1024), 0.05, "yes")])
def test_more_samples_are_compared_with_the_most_within_one_draw(samples, effect, verdict) -> None:
    def accuracy(label: str, ratio: float, count: int, draw: int) -> float:
        # Methods that read no samples gain nothing; they are not asked.
        return 85 - 10 * ratio + 3 * draw + (0.0 if label == "magnitude" else GAIN[count])

    found = answers_of(swept(accuracy, labels=("wanda", "coverage/apoz", "magnitude"), samples=samples))["h1"]
    assert (found.verdict, found.unit) == (verdict, "points")
    assert found.effect == pytest.approx(effect)
    assert found.num_pairs == 2 * 4 * 3
    assert found.sentence.startswith(f"1024 calibration samples against {min(samples)}")
    assert ("512 +0.05 (" in found.sentence) == (len(samples) == 3)
    assert "512 are enough" in found.sentence


def test_where_every_step_costs_no_fewer_are_enough() -> None:
    found = answers_of(swept(lambda *cell: 80 + cell[2] / 100, labels=("wanda",), samples=(64, 512, 1024)))["h1"]
    assert found.effect == pytest.approx(9.6)
    assert "No fewer than 1024 are sure" in found.sentence


def test_another_draw_changes_the_plan_of_few_samples() -> None:
    def removed(method: str, count: int, draw: int) -> list[int]:
        if method == "random":
            return [0, 1, 2, 3] if draw == 0 else [4, 5, 6, 7]
        return [0, 1, 2, 3] if count == 1024 or draw == 0 else [2, 3, 4, 5]

    def study(samples: tuple[int, ...]) -> StudyFrames:
        labels = ("wanda", "taylor", "magnitude", "random")
        return swept(lambda *_: 90.0, labels=labels, samples=samples, draws=(0, 1), layers=removed)

    both = answers_of(study((64, 1024)))["h2"]
    # Kept are 4 to 7, or two of them and two others: 2 of 6 are shared with 64 samples, all with 1024.
    assert both.effect == pytest.approx((2 / 6 + 1) / 2)
    assert (both.verdict, both.unit) == ("yes", "overlap")
    assert both.num_pairs == 2 * 4 * 2
    assert "By method: taylor 0.67, wanda 0.67. By number of samples: 1024 1.00, 64 0.33." in both.sentence
    assert both.sentence.endswith("Two plans of random, the control: 0.00.")
    alone = answers_of(study((1024,)))["h2"]
    assert (alone.verdict, alone.effect) == ("no", 1.0)


def test_without_two_draws_the_plans_of_two_numbers_are_compared() -> None:
    study = swept(
        lambda *_: 90.0,
        labels=("wanda",),
        samples=(64, 256),
        draws=(0,),
        layers=lambda method, count, draw: [0, 1, 2, 3] if count == 64 else [0, 1, 2, 4],
    )
    found = answers_of(study)["h2"]
    assert found.effect == pytest.approx(3 / 5)
    assert "two numbers of calibration samples" in found.sentence


@pytest.mark.parametrize(("samples", "said"), [((64, 1024), "in some trials"), ((64,), "calibration images: act")])
def test_few_samples_of_some_trials_are_a_risk(samples, said) -> None:
    study = swept(lambda *_: 90.0, labels=("wanda",), samples=samples)
    (risk,) = (risk for risk in find_risks(study) if risk.kind == "few calibration samples")
    assert risk.sentence.startswith("Only 64 calibration images")
    assert said in risk.sentence
