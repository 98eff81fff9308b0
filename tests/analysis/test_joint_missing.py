"""What several runs say where one lacks a draw: never more than with it, and not less than the truth allows."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
from report.tables import study_of
from scipy import stats

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.joint.answers import JointAnswer, JointRow
from cleanai_ray.analysis.joint.difference import LIKE_THESE, THESE
from cleanai_ray.analysis.joint.errors import error_parts
from cleanai_ray.analysis.joint.evidence import compare_sides, over_runs, shared_draws
from cleanai_ray.analysis.joint.findings import JointFindings, sureness
from cleanai_ray.analysis.joint.pairs import PairsOfRun
from cleanai_ray.analysis.joint.questions import ask, rank_step
from cleanai_ray.analysis.joint.study import JointRun, JointStudy, join_runs

LOCAL, GLOBAL = ("local", 1, 64), ("global", 1, 64)


def joint_of(*networks: str) -> JointStudy:
    study = cast("StudyFrames", None)  # not looked at
    return JointStudy(tuple(JointRun(study, name, str(number)) for number, name in enumerate(networks)))


def run_of(*numbers: float | None, cell: tuple[Any, ...] = LOCAL, name: str = "draw", grain: float = 0.0) -> PairsOfRun:
    found = {(cell, f"{name} {place}"): (value, None) for place, value in enumerate(numbers) if value is not None}
    return PairsOfRun(found, len(found), grain=grain)


def both(first: PairsOfRun, second: PairsOfRun) -> PairsOfRun:
    return PairsOfRun({**first.values, **second.values})


def test_draws_that_all_runs_have_tell_what_draws_share_and_means_are_over_all() -> None:
    tables = [run_of(1, 2, 6, 7), run_of(2, 3, 7), run_of(3, 4, 8, None)]
    found = over_runs(joint_of("x", "x", "x"), tables)
    assert found is not None
    assert found.effect == pytest.approx(np.mean([4, 4, 5]))  # of 1, 2, 6 and 7; the others have no fourth draw
    assert found.few_draws is None
    assert found.these is not None
    assert found.these[0].error == pytest.approx(1 / 3)  # 4, 4 and 5 have the variance 1 / 3, over three
    # 2, 3 and 7 are the means of the draws that all have: their variance is 7, over three.
    assert (found.these[1].error, found.these[1].freedom) == (pytest.approx((7 / 3) ** 0.5), 2)


def test_a_cell_that_is_a_copy_in_one_run_leaves_the_others() -> None:
    whole = both(run_of(1, 2, 6), run_of(5, 5, 5, cell=GLOBAL))
    draws, few = shared_draws([whole, run_of(2, 3, 7), whole])
    assert (draws.tolist(), few) == ([[1, 2, 6], [2, 3, 7], [1, 2, 6]], None)
    # A cell that has too few draws in one run is left out; one that has enough stays, with the draws of both.
    short = both(run_of(1, 2, 6), run_of(5, 5, cell=GLOBAL))
    assert shared_draws([whole, short])[0].tolist() == [[1, 2, 6]] * 2
    more = both(run_of(1, 2, 6, 9), run_of(None, 4, 4, 4, cell=GLOBAL))
    assert shared_draws([more, more])[0].tolist() == [[3, 5, 6.5]] * 2


@pytest.mark.parametrize("lost", [(1, 2, None), (None, None, 3)])
def test_with_fewer_than_three_draws_in_all_runs_no_answer_is_given_and_the_row_says_so(lost: Sequence[float]) -> None:
    joint = joint_of("x", "x", "x", "y", "y", "y", "z", "z", "z")
    found = over_runs(joint, [run_of(*lost), *(run_of(1 + step / 9, 2, 3) for step in range(8))])
    assert found is not None
    count = sum(value is not None for value in lost)
    assert found.few_draws == count
    assert (found.interval(THESE), found.interval(LIKE_THESE), found.p_value, found.told) == (None, None, None, None)
    assert JointRow("ratio 0.3", "a against b", found).answer == (
        f"cannot tell, with {count} draw{'s' if count > 1 else ''} in all runs"
    )


def test_one_seed_that_draws_nothing_is_enough_but_a_lost_one_is_told() -> None:
    joint = joint_of("x", "x", "x")
    numbers = (1.0, 1.2, 1.1)
    planned = over_runs(joint, [run_of(value, name="seed") for value in numbers])
    assert planned is not None
    assert (planned.few_draws, planned.told) == (None, THESE)
    lost = over_runs(joint, [run_of(1, 1, 1, name="seed"), *(run_of(value, name="seed") for value in numbers[1:])])
    assert lost is not None
    assert (lost.few_draws, lost.told) == (1, None)
    of_images = over_runs(joint, [run_of(value) for value in numbers])  # other images may say otherwise
    assert of_images is not None
    assert (of_images.few_draws, of_images.told) == (1, None)


def test_intervals_cover_what_they_say_where_draws_are_missing() -> None:
    names = ("x", "x", "x", "y", "y", "y", "z", "z", "z")
    joint, groups = joint_of(*names), (0, 0, 0, 1, 1, 1, 2, 2, 2)
    random, num_studies = np.random.default_rng(0), 600
    covered = without = 0
    for _ in range(num_studies):
        normal = random.standard_normal
        table = 0.1 * normal((9, 1)) + 0.5 * normal(5) + 0.2 * normal((9, 5))
        table[:, :2][random.random((9, 2)) < 0.3] = np.nan  # three of five draws are in all runs
        found = over_runs(joint, [run_of(*(None if np.isnan(v) else float(v) for v in own)) for own in table])
        assert found is not None
        interval = found.interval(THESE)
        assert interval is not None
        covered += interval[0] <= 0 <= interval[1]
        units = error_parts(np.nanmean(table, axis=1)[:, None], groups)
        assert units is not None
        without += abs(found.effect) <= units[0].error * stats.t.isf(0.025, units[0].freedom)
    assert 0.93 <= covered / num_studies <= 0.99
    assert without / num_studies < 0.7  # as if runs of unequal draws had no draws at all


def test_units_that_are_all_alike_tell_nothing_unless_a_step_is_known() -> None:
    joint = joint_of("x", "x", "x")
    alike = over_runs(joint, [run_of(0.1, 0.1, 0.1)] * 3)
    assert alike is not None
    assert (alike.these, alike.p_value, alike.told, alike.few_draws) == (None, None, None, None)
    answer = JointAnswer("b1", "?", rows=(JointRow("ratio 0.3", "a against b", alike),), is_primary=True)
    assert sureness(JointFindings(joint, (answer,), "b", (), (), ())) == (
        "The primary question at ratio 0.3: cannot tell. All trainings have the same effect, which does not tell how "
        "others would vary.",
    )
    stepped = over_runs(joint, [run_of(0.1, 0.1, 0.1, grain=0.3)] * 3)
    assert stepped is not None
    assert stepped.these is not None
    # A step of 0.3 in one of three draws moves the mean of a run by 0.1; the mean of three runs has it over root three.
    assert stepped.these[0].error == pytest.approx(0.1 / 3**0.5)


@pytest.mark.parametrize("count", [3, 4, 5])
def test_no_two_orders_differ_by_less_than_a_step(count: int) -> None:
    orders = itertools.permutations(range(count))
    found = sorted({round(float(stats.spearmanr(range(count), order).statistic), 9) for order in orders})
    assert min(np.diff(found)) == pytest.approx(rank_step(count))


def test_the_step_is_that_of_the_images_that_were_scored() -> None:
    def accuracy(label: str, *_: object) -> float:
        return 80.0 + (label == "a")

    studies = [study_of(accuracy, labels=("a", "b"), modes=("local",), num_evaluated=200) for _ in range(3)]
    joint = JointStudy(tuple(JointRun(study, "x", str(number)) for number, study in enumerate(studies)))
    found = compare_sides(joint, joint.amounts[0], lambda row: row["method"] == "a", lambda row: row["method"] == "b")
    assert found is not None
    assert found.these is not None
    # Three equal runs of three seeds: an image of 200 is half a point, a third of it in the mean of a run.
    assert found.these[0].error == pytest.approx(0.5 / 3 / 3**0.5)


def test_sizes_of_a_draw_are_one_draw_of_the_questions_of_whole_runs_too() -> None:
    labels = ("a", "b", "c", "d")

    def before(label: str, _ratio: float, _mode: str, _steps: int, seed: int) -> float:
        return 80.0 + labels.index(label) + (label == "a") * 1.25 * seed  # a passes b, then c

    def study() -> StudyFrames:
        found = study_of(lambda label, *_: 85.0 + labels.index(label), labels=labels, modes=("local",), pruned=before)
        sizes = [
            found.results.with_columns(
                (pl.col("trial_id") + f"-{size}").alias("trial_id"),
                pl.lit(size, dtype=found.results.schema["calibration_samples"]).alias("calibration_samples"),
                pl.col("seed").cast(found.results.schema["calibration_seed"]).alias("calibration_seed"),
                pl.lit(0, dtype=found.results.schema["seed"]).alias("seed"),
            )
            for size in (64, 128)
        ]
        return dataclasses.replace(found, results=pl.concat(sizes))

    joint = JointStudy(tuple(JointRun(study(), "x", str(number)) for number in range(3)))
    rows = [row for answer in ask(joint) for row in answer.rows if row.subject.startswith("order before repair")]
    assert len(rows) == 2
    units, draws = rows[0].found.these or (None, None)
    assert units is not None
    assert draws is not None
    # Orders abcd, bacd and bcad: correlations 1, 0.8 and 0.4 in each of two sizes.
    assert rows[0].found.effect == pytest.approx(2.2 / 3)
    assert (draws.error, draws.freedom) == (pytest.approx(np.std([1, 0.8, 0.4], ddof=1) / 3**0.5), 2)
    assert units.error == pytest.approx(0.2 / 3 / 3**0.5)  # a step of four ranks, in one of three draws


def test_trainings_of_one_network_may_differ_in_their_weights_and_what_is_expected_of_them() -> None:
    def study(number: int, **model: object) -> StudyFrames:
        own = {"factory": "nets.small", "weights": f"w{number}.pt", "expected_accuracy": 0.9 + number / 100, **model}
        parts: dict[str, Any] = {"study": {"name": f"study{number}", "model": own}}
        parts["environment"] = {"digests": {"weights": f"digest{number}"}}
        return study_of(lambda *_: 90.0, labels=("a",), **parts)

    keys = ("state_dict", "ema", None)
    joint = join_runs([study(number, weights_key=key) for number, key in enumerate(keys)])
    assert joint.networks == ("nets.small",)
    assert [run.training for run in joint.runs] == ["digest0", "digest1", "digest2"]
    other = join_runs([study(number, arguments={"width": number}) for number in range(2)])
    assert other.networks == ("study0", "study1")
