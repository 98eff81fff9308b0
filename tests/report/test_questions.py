"""Answers are right on tables whose truth is known: a planted winner is found, noise is not taken for one."""

from __future__ import annotations

import numpy as np
import pytest
from report.tables import Accuracy, frame, study_of

from cleanai_ray.analysis.answers import Answer
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.questions import answer_questions
from cleanai_ray.storage import schemas

METRICS = ("coverage/apoz", "coverage/entropy", "coverage/frequency")
LABELS = (*METRICS, "wanda", "magnitude", "taylor", "random")


def answers_of(**studies: StudyFrames) -> dict[str, Answer]:
    return {answer.key: answer for answer in answer_questions(studies)}


def noisy(leads: dict[str, float], *, seed: int, scale: float = 0.3, grows: bool = False) -> Accuracy:
    """Return accuracies around 88 %, with a lead a label, noise of every trial, and harder cells at higher ratios."""
    random = np.random.default_rng(seed)

    def accuracy(label: str, ratio: float, mode: str, steps: int, trial_seed: int) -> float:
        factor = (ratio / 0.4) ** 2 if grows else 1.0
        return 93 - 5 * (ratio / 0.4) ** 2 + factor * leads.get(label, 0.0) + random.normal(0, scale)

    return accuracy


@pytest.mark.parametrize("grows", [False, True], ids=["constant", "growing"])
def test_a_planted_winner_is_found(grows: bool) -> None:
    leads = {"coverage/entropy": 2.0, "wanda": 3.5, "magnitude": -1.0, "taylor": 3.5, "random": -5.0}
    accuracy = noisy(leads, seed=3, scale=0.15, grows=grows)
    before = noisy({name: 4 * lead for name, lead in leads.items()}, seed=4, scale=0.3, grows=grows)
    study = study_of(accuracy, labels=LABELS, seeds=(0, 1, 2, 3, 4), pruned=before)
    found = answers_of(study=study)
    verdicts = {key: found[key].verdict for key in ("a", "b1", "b2", "c", "f1", "f2")}
    assert verdicts == {"a": "yes", "b1": "yes", "b2": "no", "c": "yes", "f1": "yes", "f2": "yes"}
    assert found["a"].sentence.startswith("entropy")
    expected = {"b1": 2 / 3 + 1.0, "b2": 2 / 3 - 3.5}  # the mean lead of the metrics, 2 / 3 points, against the other's
    factor = np.mean([(ratio / 0.4) ** 2 for ratio in (0.3, 0.5)]) if grows else 1.0
    for key, effect in expected.items():
        answer = found[key]
        assert answer.effect == pytest.approx(effect * factor, abs=0.3)
        assert answer.low is not None
        assert answer.high is not None
        assert answer.low < effect * factor < answer.high
        assert answer.num_pairs == 20
        assert answer.p_value is not None
        assert answer.p_value < 0.05


def test_noise_is_not_taken_for_an_answer() -> None:
    quiet = 0
    for seed in range(100):
        labels = (*METRICS[:2], "wanda", "magnitude", "random")
        study = study_of(noisy({}, seed=seed), labels=labels, seeds=(0,))
        quiet += {answer.verdict for answer in answer_questions({"study": study})} == {"cannot tell"}
    assert quiet >= 90


def test_failed_trials_drop_their_pairs_and_bias_nothing() -> None:
    # Every method is equal; magnitude fails wherever the ratio is low, where all are much better.
    random = np.random.default_rng(5)

    def accuracy(label: str, ratio: float, mode: str, steps: int, seed: int) -> float | None:
        failed = label == "magnitude" and ratio < 0.35
        return None if failed else 95 - 20 * ratio + random.normal(0, 0.1)

    study = study_of(accuracy, labels=("coverage/apoz", "magnitude"), ratios=(0.1, 0.3, 0.4, 0.5, 0.6))
    answer = answers_of(study=study)["b1"]
    assert answer.verdict == "cannot tell"
    assert answer.effect == pytest.approx(0.0, abs=0.15)
    assert (answer.num_pairs, answer.num_dropped) == (18, 12)
    assert "12 pairs dropped because a trial failed" in answer.sentence


def test_a_metric_that_failed_leaves_its_cell_out_of_the_mean_of_metrics() -> None:
    levels = {"coverage/apoz": 80.0, "coverage/entropy": 90.0, "magnitude": 85.0}

    def accuracy(label: str, ratio: float, mode: str, steps: int, seed: int) -> float | None:
        return None if label == "coverage/apoz" and (ratio, mode, seed) == (0.3, "local", 1) else levels[label]

    answer = answers_of(study=study_of(accuracy, labels=tuple(levels)))["b1"]
    assert answer.effect == pytest.approx(0.0, abs=1e-9)
    assert (answer.num_pairs, answer.num_dropped) == (11, 1)
    assert all(fact in answer.sentence for fact in ("best metric", "entropy: +5.00 points"))


def test_seeds_that_change_nothing_are_no_further_evidence() -> None:
    def accuracy(label: str, ratio: float, mode: str, steps: int, seed: int) -> float:
        return 90.0 + (label == "magnitude") * (0.4 if mode == "local" else 0.1)

    study = study_of(accuracy, labels=("coverage/apoz", "magnitude"), ratios=(0.3,), seeds=tuple(range(8)))
    answer = answers_of(study=study)["b1"]
    assert answer.verdict == "cannot tell"
    assert answer.num_pairs == 16
    assert answer.low is None
    assert all(fact in answer.sentence for fact in ("16 pairs", "2 cells", "at least 3 cells"))


def test_adaptive_is_judged_where_it_measures_again() -> None:
    random = np.random.default_rng(1)

    def accuracy(label: str, ratio: float, mode: str, steps: int, seed: int) -> float:
        helped = label.startswith("adaptive") and steps > 1
        return 88.0 + 2 * helped - 3 * steps + random.normal(0, 0.1)

    labels = ("coverage/apoz", "adaptive/apoz")
    found = answers_of(study=study_of(accuracy, labels=labels, steps=(1, 3)))["d"]
    assert found.verdict == "yes"
    assert found.effect == pytest.approx(2.0, abs=0.2)
    assert found.num_pairs == 12
    single = answers_of(study=study_of(accuracy, labels=labels))["d"]
    assert single.verdict == "cannot tell"
    assert "one step" in single.sentence


def test_global_against_local() -> None:
    random = np.random.default_rng(2)

    def accuracy(label: str, ratio: float, mode: str, steps: int, seed: int) -> float:
        return 90 - 5 * ratio - (mode == "global") + random.normal(0, 0.1)

    answer = answers_of(study=study_of(accuracy, labels=("wanda", "magnitude", "taylor")))["e"]
    assert answer.verdict == "no"
    assert answer.effect == pytest.approx(-1.0, abs=0.1)


@pytest.mark.parametrize(("turned", "verdict"), [(True, "yes"), (False, "no")])
def test_repair_that_turns_the_order_round(turned: bool, verdict: str) -> None:
    levels = {"wanda": 90.0, "magnitude": 88.0, "taylor": 86.0, "random": 84.0}
    random = np.random.default_rng(4)

    def before(label: str, ratio: float, mode: str, steps: int, seed: int) -> float:
        return (174 - levels[label] if turned else levels[label]) - 50 + random.normal(0, 0.1)

    def after(label: str, ratio: float, mode: str, steps: int, seed: int) -> float:
        return levels[label] + random.normal(0, 0.1)

    answer = answers_of(study=study_of(after, labels=tuple(levels), pruned=before))["g"]
    assert answer.verdict == verdict
    assert answer.unit == "rank correlation"
    assert answer.effect == pytest.approx(-1.0 if turned else 1.0)


def layers_of(removed: dict[str, list[list[int]]]) -> list[dict]:
    """Return rows of layers.parquet with 8 channels a group, from what each trial removed of each."""
    return [
        {
            "trial_id": trial_id,
            "layer": f"conv{index}",
            "layer_index": index,
            "group": f"conv{index}",
            "out_channels_dense": 8,
            "removed_channels": channels,
        }
        for trial_id, groups in removed.items()
        for index, channels in enumerate(groups)
    ]


def test_relation_of_coverage_and_magnitude_is_that_of_what_they_remove() -> None:
    labels = ("coverage/apoz", "magnitude")
    one = {"labels": labels, "ratios": (0.5,), "modes": ("local",), "seeds": (0,)}
    removed = {
        "coverage-apoz-local-0.5-1-0": [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]],
        "magnitude--local-0.5-1-0": [[0, 1, 2, 3], [2, 3, 4, 5], [0, 1, 2, 4]],
    }
    layers = frame(layers_of(removed), schemas.LAYERS)
    answer = answers_of(study=study_of(lambda *_: 90.0, **one, layers=layers))["i"]
    # Of 8 channels each removes 4. Shared 4, 2, 3: correlations (4 * shared - 8) / 8 = 1, 0 and 0.5.
    assert answer.effect == pytest.approx(0.5)
    assert answer.unit == "correlation"
    assert answer.num_pairs == 1
    assert "0.00 (conv1)" in answer.sentence
    assert "+1.00 (conv0)" in answer.sentence


def calibrated(samples: int, seed: int, layers: list[list[int]], accuracy: float) -> StudyFrames:
    ratios = (0.3, 0.4, 0.5, 0.6)
    removed = {f"wanda--local-{ratio:g}-1-0": layers for ratio in ratios}
    return study_of(
        lambda label, ratio, *_: accuracy - 10 * ratio,
        labels=("wanda",),
        ratios=ratios,
        modes=("local",),
        seeds=(0,),
        layers=frame(layers_of(removed), schemas.LAYERS),
        study={"model": {"name": "m"}, "data": {"name": "d", "calibration": {"samples": samples, "seed": seed}}},
    )


def test_calibration_needs_studies_that_differ_in_it() -> None:
    one = calibrated(128, 0, [[0, 1, 2, 3]], 90)
    alone = answers_of(study=one)
    assert {alone[key].verdict for key in ("h1", "h2")} == {"cannot tell"}
    assert "one number and one draw" in alone["h1"].sentence
    # Both keep 4, 5, 6, 7 of 8, or 2 of these and 2 others: 2 shared of 6, and 4 of 4.
    other = answers_of(first=one, second=calibrated(128, 1, [[2, 3, 4, 5]], 90))["h2"]
    assert (other.verdict, other.effect) == ("yes", pytest.approx(2 / 6))
    same = answers_of(first=one, second=calibrated(128, 1, [[0, 1, 2, 3]], 90))["h2"]
    assert (same.verdict, same.effect) == ("no", 1.0)
    more = answers_of(first=one, second=calibrated(1024, 0, [[0, 1, 2, 3]], 92))["h1"]
    assert (more.verdict, more.num_pairs) == ("yes", 4)
    assert more.effect == pytest.approx(2.0)
    assert more.sentence.startswith("1024 calibration samples against 128")


def test_pairs_are_formed_within_a_study() -> None:
    hard = study_of(noisy({"magnitude": 2.0}, seed=1, scale=0.1), labels=("coverage/apoz", "magnitude"))
    easy = study_of(noisy({}, seed=2), labels=("coverage/apoz",))
    found = answers_of(hard=hard, easy=easy)["b1"]
    assert found.num_pairs == 12
    assert found.verdict == "no"


def test_nothing_to_compare_is_said() -> None:
    failed = study_of(lambda *_: None, labels=LABELS)
    for answer in answers_of(study=failed).values():
        assert (answer.verdict, answer.effect, answer.p_value) == ("cannot tell", None, None)
        assert answer.sentence
