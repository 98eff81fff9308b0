"""The recommended trial meets the limits, and where none does the report says what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from report import synthetic

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.recommendation import recommend
from cleanai_ray.config.study import parse_study
from cleanai_ray.errors import StudyError
from cleanai_ray.stages.fingerprints import trial_key

TRIALS = [  # accuracy, MACs of 100, latency of 10 ms
    (0.93, 90, 9.0),
    (0.92, 60, 7.0),
    (0.915, 30, 5.0),
    (0.89, 25, 4.0),
    (0.60, 10, 2.0),
]


def study_of(folder: Path, limits: dict | None = None, trials: list[tuple[float, int, float]] = TRIALS) -> StudyFrames:
    tables = synthetic.make(methods=("wanda",), ratios=(0.1, 0.2, 0.3, 0.4, 0.5)[: len(trials)], modes=("local",))
    for row, (accuracy, macs, latency) in zip(tables.results, trials, strict=True):
        row |= {"accuracy": accuracy, "accuracy_dense": 0.935, "macs": macs, "macs_dense": 100}
        row |= {"latency_ms_b1_p50": latency, "latency_ms_b1_p50_dense": 10.0}
    tables.study["recommend"] = limits
    return StudyFrames.load(tables.write(folder))


@pytest.mark.parametrize(
    ("limits", "taken", "runner_up"),
    [
        ({"max_accuracy_loss": 2.0}, 30, 60),
        ({"max_accuracy_loss": 1.5}, 60, 90),  # 93.5 - 92 is 1.5000000000000013 in floats
        ({"max_accuracy_loss": 2.0, "max_latency_ms": None}, 30, 60),
        ({"max_latency_ms": 5.0}, 30, 25),
        ({"max_macs": 0.6, "min_speedup": 1.4}, 60, 30),
    ],
)
def test_limits(limits: dict, taken: int, runner_up: int, tmp_path: Path) -> None:
    found = recommend(study_of(tmp_path, limits))
    assert found.trial is not None
    assert found.runner_up is not None
    assert (found.trial["macs"], found.runner_up["macs"]) == (taken, runner_up)
    assert found.trial["trial_id"] in found.sentence
    assert "limits" in found.why


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    found = recommend(study_of(tmp_path, {"max_accuracy_loss": 1.0, "max_latency_ms": 6.0}))
    assert found.trial is None
    assert "accuracy lost at most 1 point, latency at batch 1 at most 6 ms" in found.sentence
    # Of the trials with at most 6 ms the best loses 93.5 - 91.5 points; of those with at most 1 point one has 9 ms.
    accuracy, latency = found.missing
    assert "none meets it; the nearest loses 2 points" in accuracy
    assert "none meets it; the nearest has 9 ms" in latency


def test_without_limits_the_knee_is_taken(tmp_path: Path) -> None:
    # Scaled to the front of the usable trials and dense, (0.25, 0.89) to (1, 0.935): heights above the chord are
    # 0.89 - 0.87, 0.667 - 0.467, 0.556 - 0.067 and 0: the third is the farthest.
    found = recommend(study_of(tmp_path))
    assert found.trial is not None
    assert found.trial["macs"] == 30
    assert found.runner_up is not None
    assert found.runner_up["macs"] == 60
    assert "knee" in found.why
    assert "2.00 points" in found.cost


def test_too_great_a_loss_is_not_recommended(tmp_path: Path) -> None:
    found = recommend(study_of(tmp_path, trials=[(0.8, 50, 5.0), (0.6, 20, 3.0)]))
    assert found.trial is None
    assert "13.5 points below" in found.missing[0]


def test_nothing_is_recommended_where_all_failed(tmp_path: Path) -> None:
    tables = synthetic.fail(synthetic.make(methods=("wanda",)))
    assert recommend(StudyFrames.load(tables.write(tmp_path))).trial is None


DOCUMENT = {
    "model": {"name": "resnet20", "input_shape": [1, 8, 8]},
    "data": {"name": "digits"},
    "sweep": {"methods": ["magnitude"], "ratios": [0.3]},
}


def test_the_section_changes_no_key_of_a_trial() -> None:
    bare, limited = parse_study(DOCUMENT), parse_study({**DOCUMENT, "recommend": {"max_accuracy_loss": 1.0}})
    assert bare.recommend is None
    assert limited.recommend is not None
    trial = bare.trials()[0]
    assert limited.trials() == bare.trials()
    assert trial_key(limited, trial, "dense") == trial_key(bare, trial, "dense")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"max_latency_ms": -1}, "max_latency_ms"),
        ({"max_accuracy_loss": None}, "sets no limit"),
        ({"max_loss": 1}, "max_loss"),
    ],
)
def test_a_wrong_section_is_refused(section: dict, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        parse_study({**DOCUMENT, "recommend": section})


@pytest.mark.parametrize("limit", [{"max_latency_ms": 5}, {"min_speedup": 1.5}])
@pytest.mark.parametrize(
    "latency", [None, {"batch_sizes": [8]}, {"backends": ["compile"]}], ids=["not at all", "batch 8", "compiled"]
)
def test_a_limit_on_a_speed_that_nothing_times_is_refused(limit: dict, latency: dict | None) -> None:
    (name,) = limit
    with pytest.raises(StudyError, match=rf"recommend.{name} is .* needed: evaluation.target"):
        parse_study({**DOCUMENT, "recommend": limit, "evaluation": {"latency": latency}})


def test_a_limit_on_speed_may_be_that_in_a_target() -> None:
    evaluation = {"latency": {"batch_sizes": [8]}, "target": {"backend": "torch", "batch_size": 8}}
    found = parse_study({**DOCUMENT, "recommend": {"max_latency_ms": 5}, "evaluation": evaluation})
    assert found.recommend is not None


def in_target(tables: synthetic.Tables, trials: list[tuple[float, float]]) -> synthetic.Tables:
    """Give trials their (milliseconds, dense milliseconds) in a target; batch 1 says something else."""
    for row, (own, dense) in zip(tables.results, trials, strict=True):
        row |= {"latency_target": "onnxruntime float32, batch 1, 1 thread"}
        row |= {"latency_ms_target": own, "latency_ms_target_dense": dense, "speedup_target": dense / own}
        row |= {"speedup_b1": 3.0, "latency_ms_b1_p50": 1.0, "latency_ms_b1_p50_dense": 3.0}
    return tables


def timed_in_target(
    folder: Path, trials: list[tuple[float, float]], limits: dict | None = None, intervals: tuple = ()
) -> StudyFrames:
    ratios = (0.1, 0.2, 0.3, 0.4)[: len(trials)]
    tables = in_target(synthetic.make(methods=("wanda",), ratios=ratios, modes=("local",)), trials)
    for place, row in enumerate(tables.results):
        # The more is removed, the fewer MACs; every trial keeps its accuracy within a point.
        row |= {"accuracy": 0.93 - 0.002 * place, "accuracy_dense": 0.935, "macs": 90 - 20 * place, "macs_dense": 100}
    for row, (low, high) in zip(tables.results, intervals, strict=False):
        row |= {"speedup_target_low": low, "speedup_target_high": high}
    tables.study["recommend"] = limits
    return StudyFrames.load(tables.write(folder))


def test_in_a_target_the_cheapest_is_the_fastest_and_not_the_one_with_the_fewest_macs(tmp_path: Path) -> None:
    study = timed_in_target(tmp_path, [(9.0, 10.0), (5.0, 10.0), (6.0, 10.0)], {"max_accuracy_loss": 2.0})
    found = recommend(study)
    assert found.trial is not None
    assert (found.trial["macs"], found.trial["speedup"], found.trial["latency_ms"]) == (70, 2.0, 5.0)
    assert "latency in the target at most" not in found.why
    assert "this is the fastest of them" in found.why
    assert "5 ms in onnxruntime float32, batch 1, 1 thread, 2.00" in found.cost


def test_the_limit_on_latency_is_that_in_the_target(tmp_path: Path) -> None:
    found = recommend(timed_in_target(tmp_path, [(9.0, 10.0), (5.0, 10.0), (6.0, 10.0)], {"max_latency_ms": 6.0}))
    assert found.trial is not None
    assert found.trial["latency_ms"] == 5.0  # the more accurate of the two that meet it


def test_a_trial_that_is_slower_than_dense_is_never_recommended(tmp_path: Path) -> None:
    trials = [(12.5, 10.0), (10.1, 10.0), (11.0, 10.0)]  # 0.80, 0.99 and 0.91 times the speed
    intervals = ((0.75, 0.85), (0.95, 1.03), (None, None))
    study = timed_in_target(tmp_path, trials, {"max_accuracy_loss": 2.0}, intervals)
    assert study.ok.sort("macs", descending=True)["is_slower"].to_list() == [True, False, True]
    for limits in ({"max_accuracy_loss": 2.0}, {"max_macs": 1.0}, None):
        found = recommend(timed_in_target(tmp_path / str(limits)[:9], trials, limits, intervals))
        assert found.trial is not None
        assert found.trial["macs"] == 70
        assert "2 trials are slower than the dense model in the target" in found.why


@pytest.mark.parametrize("limits", [{"max_accuracy_loss": 2.0}, None])
def test_where_all_are_slower_than_dense_none_is_recommended(limits: dict | None, tmp_path: Path) -> None:
    found = recommend(timed_in_target(tmp_path, [(12.5, 10.0), (11.0, 10.0)], limits))
    assert found.trial is None
    assert "2 trials are slower than the dense model in the target" in found.sentence
