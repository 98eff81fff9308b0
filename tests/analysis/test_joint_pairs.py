"""Pairs within a run and means over runs, by hand: draws, plans, failures, copies, and models near chance."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from report.tables import study_of

from cleanai_ray.analysis.joint.choice import choose_jointly
from cleanai_ray.analysis.joint.evidence import over_runs, shared_draws
from cleanai_ray.analysis.joint.pairs import PairsOfRun, pair_up_run
from cleanai_ray.analysis.joint.study import JointRun, JointStudy

Row = dict[str, Any]
CELL = ("mode", "steps")


def row(method: str, value: float | None, draw: int | None = 0, **columns: Any) -> Row:
    found = {"method": method, "final": value, "draw": draw, "samples": 64, "mode": "local", "steps": 1}
    return {**found, "trial_seed": 0, "chance": 18.0, "grain": 0.5, "trial_id": method, **columns}


def paired(*rows: Row, hits: dict[str, list[bool]] | None = None, mask: list[bool] | None = None) -> PairsOfRun:
    known = {name: np.array(bits) for name, bits in (hits or {}).items()}
    run = cast("JointRun", SimpleNamespace(hits=known))

    def side(method: str) -> Any:
        return lambda each: each["method"] == method

    images = None if mask is None else np.array(mask)
    return pair_up_run(run, rows, side("a"), side("b"), stage="final", cell=CELL, mask=images)


def told(found: PairsOfRun) -> dict[Any, float]:
    return {key: value for key, (value, _) in found.values.items()}


LOCAL, GLOBAL, ANY_SIZE = ("local", 1, 64), ("global", 1, 64), ("local", 1, "any")


def test_plans_are_averaged_within_a_draw() -> None:
    rows = [row("a", 85.0), row("b", 80.0), row("b", 82.0, trial_seed=1), row("a", 86.0, 1), row("b", 84.0, 1)]
    found = paired(*rows)
    assert told(found) == {(LOCAL, "draw 0"): 4.0, (LOCAL, "draw 1"): 2.0}
    assert (found.num_pairs, found.num_dropped, found.num_near_chance) == (3, 0, 0)


def test_a_draw_in_which_a_trial_failed_is_left_out_and_counted() -> None:
    found = paired(row("a", 85.0), row("b", None), row("a", 86.0, 1), row("b", 84.0, 1))
    assert told(found) == {(LOCAL, "draw 1"): 2.0}
    assert found.num_dropped == 1


def test_a_draw_in_which_both_are_near_chance_is_left_out_and_counted() -> None:
    found = paired(row("a", 17.0), row("b", 12.0), row("a", 19.0, 1), row("b", 12.0, 1))
    assert told(found) == {(LOCAL, "draw 1"): 7.0}
    assert found.num_near_chance == 1


def test_a_cell_that_is_a_copy_of_another_counts_once() -> None:
    both = [row("a", 85.0), row("b", 80.0)]
    found = paired(*both, *({**each, "mode": "global"} for each in both))
    assert len(found.values) == 1
    found = paired(*both, row("a", 85.0, mode="global"), row("b", 80.5, mode="global"))
    assert told(found) == {(LOCAL, "draw 0"): 5.0, (GLOBAL, "draw 0"): 4.5}


def test_a_trial_that_reads_no_images_stands_beside_every_draw_and_size() -> None:
    for nothing in (row("b", 80.0, None), row("b", 80.0, None, samples=None)):
        found = paired(row("a", 85.0), row("a", 87.0, 1), row("a", 89.0, 1, samples=128), nothing)
        more = ("local", 1, 128)
        assert told(found) == {(LOCAL, "draw 0"): 5.0, (LOCAL, "draw 1"): 7.0, (more, "draw 1"): 9.0}


def test_sizes_of_a_draw_are_paired_apart_and_are_one_draw() -> None:
    rows = [
        row(method, 80.0 + 10 * (method == "a") * (1 + draw) / size * 64, draw, samples=size)
        for draw, size, method in itertools.product((0, 1, 2), (64, 128), "ab")
    ]
    found = paired(*rows)
    assert len(found.values) == 6
    draws, few = shared_draws([found, found])
    assert few is None
    # 10, 20 and 30 points of 64 images, half of that of 128: three draws, not six.
    assert draws.tolist() == [[7.5, 15.0, 22.5]] * 2


def test_trials_whose_single_images_are_not_known_have_not_failed() -> None:
    rows = [row("a", 75.0, trial_id="a0"), row("b", 50.0, trial_id="b0")]
    rows += [row("a", 75.0, 1, trial_id="a1"), row("b", 50.0, 1, trial_id="b1"), row("a", None, 2), row("b", 50.0, 2)]
    hits = {"a0": [True, True, True, False], "b0": [True, False, True, False], "a1": [True] * 4}
    found = paired(*rows, hits=hits, mask=[True, True, False, False])
    assert told(found) == {(LOCAL, "draw 0"): 50.0}
    assert (found.num_unknown, found.num_dropped, found.num_near_chance) == (1, 1, 0)
    assert paired(*rows, hits=hits, mask=[True] * 4).num_unknown == 0  # the accuracies are of all images


def test_a_step_is_one_image_of_those_that_count() -> None:
    rows = [row("a", 75.0), row("b", 50.0)]
    hits = {"a": [True, True, True, False], "b": [True, False, True, False]}
    assert paired(*rows, hits=hits, mask=[True, True, False, False]).grain == 50.0
    assert paired(*rows, hits=hits, mask=[True] * 4).grain == 25.0
    assert paired(*rows).grain == 0.5  # the column of the trials, where single images are not known
    assert paired(row("a", 75.0, grain=None), row("b", 50.0, grain=None)).grain == 0.0


def test_where_nothing_is_drawn_seeds_are_the_replicates() -> None:
    told_apart = ((0, "a", 83.0), (0, "b", 81.0), (1, "a", 89.0), (1, "b", 84.0))
    rows = [row(method, value, None, trial_seed=seed) for seed, method, value in told_apart]
    assert told(paired(*rows)) == {(ANY_SIZE, "seed 0"): 2.0, (ANY_SIZE, "seed 1"): 5.0}


def joint_of(*networks: str) -> JointStudy:
    study = study_of(lambda *_: 90.0, labels=("a",))
    return JointStudy(tuple(JointRun(study, name, str(number)) for number, name in enumerate(networks)))


def values(*numbers: float) -> PairsOfRun:
    return PairsOfRun({(LOCAL, f"draw {draw}"): (number, None) for draw, number in enumerate(numbers)}, len(numbers))


def test_networks_weigh_the_same_and_every_one_must_have_a_pair() -> None:
    joint = joint_of("x", "x", "x", "y")
    found = over_runs(joint, [values(1, 2, 3), values(3, 4, 5), values(2, 3, 4), values(9, 10, 11)])
    assert found is not None
    assert found.effect == pytest.approx((3 + 10) / 2)
    assert dict(found.by_network) == {"x": pytest.approx(3), "y": pytest.approx(10)}
    assert (found.num_runs, found.num_pairs) == (4, 12)
    assert found.like_these is None  # of two networks nothing is said of others
    assert found.these is not None
    # The one training of y is taken to vary as those of x: variance 1, over three and over one, and two networks.
    assert found.these[0].error == pytest.approx(((1 / 3 + 1) / 4) ** 0.5)
    # All runs have the same draws beside their means: 1 apart, so that draws share a variance of 1 over three.
    assert found.these[1].error == pytest.approx((1 / 3) ** 0.5)
    assert over_runs(joint, [values(1), values(2), values(3), PairsOfRun({})]) is None


def test_the_runner_up_may_be_of_another_mode() -> None:
    def accuracy(label: str, ratio: float, mode: str, _: int, seed: int) -> float:
        return 90 - 10 * ratio + (mode == "global") + 0.1 * seed - 3 * (label == "random")

    runs = [study_of(accuracy, labels=("magnitude", "random")) for _ in range(3)]
    joint = JointStudy(tuple(JointRun(study, "x", str(number)) for number, study in enumerate(runs)))
    first, second = choose_jointly(joint)
    assert (first.amount, first.name, first.runner_up) == ("ratio 0.3", "magnitude (global)", "magnitude (local)")
    assert second.amount == "ratio 0.5"
    for choice, below in ((first, 93 - 88.1), (second, 93 - 86.1)):  # dense has 93 points, seeds 0.1 on average
        assert choice.against_dense.effect == pytest.approx(-below)
        assert choice.against_runner_up is not None
        assert choice.against_runner_up.effect == pytest.approx(1.0)
        assert choice.accuracy == pytest.approx((93 - below) / 100)
