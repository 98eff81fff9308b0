"""One chosen trial: by the mean of its replicates on images that decide, reported on images that decide nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from report.with_images import DECIDES, DENSE, MOST_ACCURATE, N, right, study_with_images

from cleanai_ray.analysis.findings import find
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.risks import find_risks
from cleanai_ray.analysis.verdict import judge


def test_images_that_decide_choose_and_the_others_report() -> None:
    trials = [{"method": "wanda"}, {"method": "taylor"}]
    study = study_with_images(trials, [right(920, 880), right(900, 925)], DENSE, DECIDES, study=MOST_ACCURATE)
    # By all images taylor is better, 91.25 % against 90 %; by those that decide it is wanda.
    choice = study.choice
    assert choice.trial is not None
    assert study.best == choice.trial == choice.recommendation.trial
    assert choice.trial["method"] == "wanda"
    assert choice.trial["accuracy"] == pytest.approx(0.88)
    assert choice.trial["accuracy_dense"] == pytest.approx(0.93)
    assert choice.trial["loss_points"] == pytest.approx(5.0)
    assert choice.against_dense is not None
    assert (choice.against_dense.lost, choice.against_dense.gained, choice.against_dense.num_images) == (50, 0, 1000)
    assert choice.against_runner_up is not None
    assert choice.against_runner_up.effect == pytest.approx(-4.5)
    assert choice.optimism is None
    assert "88.0 % top-1" in choice.recommendation.sentence
    assert "1000 test images, which decided nothing" in choice.recommendation.sentence
    lost = "\N{MINUS SIGN}5.00 points of accuracy (McNemar's test: p < 0.001)"
    assert choice.recommendation.cost.startswith(f"Against dense: {lost}")
    assert "choice of the winner" not in {risk.kind for risk in find_risks(study)}


def test_a_configuration_is_as_good_as_the_mean_of_its_draws() -> None:
    lucky = [{"method": "hessian", "calibration_seed": draw} for draw in (0, 1, 2)]
    steady = [{"method": "wanda", "calibration_seed": draw} for draw in (0, 1, 2)]
    hits = [right(validation, 900) for validation in (925, 890, 891, 915, 914, 913)]
    choice = study_with_images([*lucky, *steady], hits, DENSE, DECIDES, study=MOST_ACCURATE).choice
    assert choice.trial is not None
    assert (choice.trial["method"], choice.trial["calibration_seed"]) == ("wanda", 0)
    assert choice.num_replicates == 3
    assert choice.replicate_mean == pytest.approx(0.914)
    assert "3 trials that differ in seed or draw alone" in choice.recommendation.sentence


def test_where_no_images_were_set_aside_the_luck_is_told() -> None:
    generator = np.random.default_rng(0)
    # Twenty trials that are equally good: each differs from dense in about 5 % of the images, at random.
    hits = [np.where(generator.random(N) < 0.05, ~DENSE, DENSE) for _ in range(20)]
    trials = [{"method": f"m{number}"} for number in range(20)]
    study = study_with_images(trials, hits, DENSE, np.zeros(N, dtype=bool), study=MOST_ACCURATE)
    choice = study.choice
    assert not choice.has_test_images
    # The largest of 20 normal values is 1.867 standard errors, of about sqrt(0.05 / 2000) = 0.5 points each.
    assert choice.optimism == pytest.approx(1.867 * 0.5, rel=0.15)
    (risk,) = (risk for risk in find_risks(study) if risk.kind == "choice of the winner")
    assert f"about {choice.optimism:.1f} points less" in risk.sentence
    assert "points less on new ones" in choice.recommendation.sentence


def test_cover_verdict_and_risks_look_at_the_recommended_trial() -> None:
    trials = [{"method": "wanda", "macs": 90}, {"method": "taylor", "macs": 30}]
    limits = {"recommend": {"max_accuracy_loss": 2.0}}
    study = study_with_images(trials, [right(929, 929), right(915, 915)], DENSE, DECIDES, study=limits)
    findings = find(study)
    assert findings.recommendation.trial is not None
    assert findings.headline.trial is not None
    assert findings.headline.trial["trial_id"] == findings.recommendation.trial["trial_id"] == "taylor-1"
    (risk,) = (risk for risk in findings.risks if risk.kind == "accuracy loss")
    assert risk.is_about_best
    assert "loses 1.5 points" in risk.sentence


def judged(loss: int, limit: float | None) -> tuple[str, tuple[str, ...]]:
    """The verdict on a trial that loses so many of 1,000 test images, and gains none."""
    limits = {} if limit is None else {"recommend": {"max_accuracy_loss": limit}}
    study = study_with_images([{}], [right(929, 930 - loss)], DENSE, DECIDES, study=limits)
    return judge(study, [risk for risk in find_risks(study) if risk.kind != "accuracy loss"])


def test_acceptable_only_against_a_stated_limit_with_the_whole_interval() -> None:
    assert judged(2, 1.0)[0] == "acceptable"  # 0.2 points, up to z^2-like 0.7
    verdict, reasons = judged(9, 1.0)  # 0.9 points, but up to 1.7
    assert verdict == "with reservations"
    assert "may be beyond the limit" in reasons[0]
    assert "can be told" in reasons[0]
    assert judged(30, 1.0)[0] == "not acceptable"
    verdict, reasons = judged(2, None)
    assert verdict == "no limit stated"
    assert "recommend.max_accuracy_loss" in reasons[0]


def test_tables_of_before_are_read_and_what_they_cannot_tell_is_said() -> None:
    trials = [{"method": "wanda"}, {"method": "taylor"}]
    study = study_with_images(trials, [right(920, 920), right(915, 915)], DENSE, DECIDES, study=MOST_ACCURATE)
    names = [name for name in study.results.columns if "_validation" in name or "_test" in name]
    older = replace(
        study,
        results=study.results.drop(names).with_columns(*(study.results[name].clear(n=2) for name in names)),
        images=study.images.clear(),
        correct=study.correct.clear(),
    )
    choice = older.choice
    assert choice.trial is not None
    assert choice.trial["method"] == "wanda"
    assert choice.trial["accuracy"] == pytest.approx(0.92)
    assert choice.against_dense is not None  # from `lost` and `gained`
    assert (choice.against_dense.lost, choice.against_dense.num_images) == (20, 2000)
    assert choice.against_runner_up is None
    (risk,) = (risk for risk in find_risks(older) if risk.kind == "uncertainty")
    assert "Single images were not kept" in risk.sentence
    bare = replace(older, results=older.results.with_columns(older.results["lost"].clear(n=2)))
    limited = replace(bare, study={"recommend": {"max_accuracy_loss": 3.0}})
    verdict, reasons = judge(limited, ())
    assert verdict == "with reservations"
    assert "do not hold" in reasons[0]


def simulated(generator: np.random.Generator, worse: bool) -> StudyFrames:
    """Ten classes of 200 images; a model that differs in 5 % of them, and in class 0 loses 15 % more."""
    labels = np.arange(N) % 10
    dense = generator.random(N) < 0.9
    hits = np.where(generator.random(N) < 0.05, generator.random(N) < 0.9, dense)
    if worse:
        hits &= ~((labels == 0) & (generator.random(N) < 0.15))
    return study_with_images([{}], [hits], dense, np.zeros(N, dtype=bool), labels=labels)


def test_class_alarms_are_seldom_false_and_find_a_class_that_pays() -> None:
    generator = np.random.default_rng(1)
    alarms = dict.fromkeys((False, True), 0)
    for worse in alarms:
        for _ in range(60):
            kinds = {risk.kind for risk in find_risks(simulated(generator, worse))}
            alarms[worse] += "uneven classes" in kinds
    assert alarms[False] <= 5  # 60 studies at 5 % or less: more than 5 have a probability of 8 % at the most
    assert alarms[True] >= 57


def one_study(generator: np.random.Generator, decides: np.ndarray) -> tuple[float, tuple[float, float], float]:
    """Thirty trials that truly lose 1 point: what is said of the best of them, its interval, and the optimism."""
    dense = generator.random(N) < 0.93
    lost = [dense & (generator.random(N) < 0.04 / 0.93) for _ in range(30)]
    gained = [~dense & (generator.random(N) < 0.03 / 0.07) for _ in range(30)]
    trials = [{"method": f"m{number}"} for number in range(30)]
    hits = [(dense & ~one) | other for one, other in zip(lost, gained, strict=True)]
    choice = study_with_images(trials, hits, dense, decides, study=MOST_ACCURATE).choice
    assert choice.against_dense is not None
    return choice.against_dense.effect, choice.against_dense.interval, choice.optimism or 0.0


@pytest.mark.parametrize("sets_aside", [True, False])
def test_what_is_said_of_the_chosen_trial_is_true_of_new_images(sets_aside: bool) -> None:
    generator = np.random.default_rng(3)
    decides = DECIDES if sets_aside else np.zeros(N, dtype=bool)
    found = [one_study(generator, decides) for _ in range(150)]
    effects = np.array([effect for effect, _, _ in found])
    covered = np.mean([low <= -1.0 <= high for _, (low, high), _ in found])
    if sets_aside:
        assert effects.mean() == pytest.approx(-1.0, abs=0.15)
        assert covered >= 0.90  # 150 studies at 95 %: three standard errors below
    else:
        # The best of thirty by the images that it is reported on: two standard errors of 0.6 points, as is said.
        assert effects.mean() > -0.1
        assert np.mean([optimism for _, _, optimism in found]) == pytest.approx(effects.mean() + 1.0, rel=0.2)
        assert covered < 0.80
