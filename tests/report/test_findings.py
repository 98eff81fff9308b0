"""The words of a report follow from the tables, and can say no."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from report import synthetic
from report.synthetic import Tables

from cleanai_ray.analysis.findings import Findings, find
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.method_ranks import rank_methods
from cleanai_ray.analysis.numbers import percent
from cleanai_ray.analysis.risks.over_fitting import OVERFIT_DROP


@pytest.fixture
def findings_of(tmp_path: Path) -> Callable[[Tables], Findings]:
    return lambda tables: find(StudyFrames.load(tables.write(tmp_path)))


def kinds(findings: Findings, *, above_info: bool = True) -> set[str]:
    return {risk.kind for risk in findings.risks if not above_info or risk.severity != "info"}


def small(**options: object) -> Tables:
    return most_accurate(synthetic.make(**{"methods": ("magnitude", "wanda", "random"), **options}))  # type: ignore[arg-type]


def most_accurate(tables: Tables) -> Tables:
    """With a limit that every trial meets, the most accurate trial is the chosen one."""
    tables.study["recommend"] = {"max_params": 1.0}
    return tables


def best_row(tables: Tables) -> dict:
    return max((row for row in tables.results if row["status"] == "ok"), key=lambda row: row["accuracy"])


def test_headline_holds_the_numbers_of_the_best_trial(findings_of: Callable[[Tables], Findings]) -> None:
    tables = most_accurate(synthetic.make())
    assert len(tables.results) == 48
    best = best_row(tables)
    headline = findings_of(tables).headline
    assert headline.trial is not None
    assert headline.trial["trial_id"] == best["trial_id"]
    assert headline.verdict == "no limit stated"
    assert f"{100 * best['accuracy']:.1f} % top-1" in headline.sentence
    assert f"{100 * (best['accuracy_dense'] - best['accuracy']):.1f} points below" in headline.sentence
    assert headline.macs_reduction == pytest.approx(1 - best["macs"] / best["macs_dense"])
    assert headline.params_reduction == pytest.approx(1 - best["params"] / best["params_dense"])
    assert headline.speedup == pytest.approx(best["latency_ms_b1_p50_dense"] / best["latency_ms_b1_p50"])


def test_a_clean_study_has_no_serious_risk(findings_of: Callable[[Tables], Findings]) -> None:
    findings = findings_of(most_accurate(synthetic.make(finetune_epochs=4)))
    assert kinds(findings) == set()
    assert findings.headline.reasons == ("The study sets no limit on the accuracy lost (recommend.max_accuracy_loss).",)


def test_all_failed(findings_of: Callable[[Tables], Findings]) -> None:
    tables = synthetic.fail(small(), error="out of memory")
    findings = findings_of(tables)
    assert findings.headline.verdict == "not acceptable"
    assert findings.headline.sentence.startswith("No trial is acceptable")
    assert "all 12 trials failed" in findings.headline.sentence
    details = " ".join(findings.risks[0].details)
    assert all(row["error"] in details for row in tables.results)
    assert findings.cells == ()
    assert findings.ranking == ()
    assert findings.smallest_within_a_point is None


def test_some_failed(findings_of: Callable[[Tables], Findings]) -> None:
    tables = small()
    synthetic.fail(tables, {tables.results[-1]["trial_id"]})
    findings = findings_of(tables)
    assert kinds(findings) == {"failed trials"}
    assert findings.headline.verdict == "no limit stated"


def test_every_trial_near_chance_is_refused_whatever_was_saved(findings_of: Callable[[Tables], Findings]) -> None:
    tables = small()
    for row in tables.results:
        row["accuracy"] = 0.093
        row["latency_ms_b1_p50"] = row["latency_ms_b1_p50_dense"] / 0.4
    findings = findings_of(tables)
    assert findings.headline.verdict == "not acceptable"
    assert findings.headline.sentence.startswith("No trial is acceptable")
    assert {"near chance", "accuracy loss", "slower than dense"} <= kinds(findings)
    assert findings.risks[0].severity == "high"
    assert "0.40\N{MULTIPLICATION SIGN}" in findings.headline.sentence


def test_one_trial_near_chance(findings_of: Callable[[Tables], Findings]) -> None:
    tables = small()
    tables.results[-1]["accuracy"] = 0.11
    findings = findings_of(tables)
    assert kinds(findings) == {"near chance"}
    assert findings.headline.verdict == "no limit stated"


def test_an_untrained_dense_model_is_refused(findings_of: Callable[[Tables], Findings]) -> None:
    tables = small()
    for row in tables.results:
        row["accuracy_dense"], row["accuracy"] = 0.105, 0.2
    findings = findings_of(tables)
    assert "dense near chance" in kinds(findings)
    assert findings.headline.verdict == "not acceptable"


@pytest.mark.parametrize(
    ("lost", "verdict"), [(0.009, "no limit stated"), (0.02, "with reservations"), (0.06, "not acceptable")]
)
def test_loss_against_dense(lost: float, verdict: str, findings_of: Callable[[Tables], Findings]) -> None:
    tables = small()
    for row in tables.results:
        row["accuracy"] = min(row["accuracy"], row["accuracy_dense"] - lost) - (row["method"] == "random") * 0.001
    best_row(tables)["accuracy"] = tables.results[0]["accuracy_dense"] - lost
    findings = findings_of(tables)
    assert findings.headline.verdict == verdict
    assert ("accuracy loss" in kinds(findings)) == (verdict != "no limit stated")


def test_nothing_saved_is_refused(findings_of: Callable[[Tables], Findings]) -> None:
    tables = small()
    best = best_row(tables)
    best["macs"], best["params"] = best["macs_dense"], best["params_dense"]
    findings = findings_of(tables)
    assert "no saving" in kinds(findings)
    assert findings.headline.verdict == "not acceptable"


@pytest.mark.parametrize(("speedup", "kind"), [(0.8, "slower than dense"), (1.1, "speed-up below MACs"), (1.9, None)])
def test_speed(speedup: float, kind: str | None, findings_of: Callable[[Tables], Findings]) -> None:
    tables = small()
    best = best_row(tables)
    best["macs"] = best["macs_dense"] // 2
    best["latency_ms_b1_p50"] = best["latency_ms_b1_p50_dense"] / speedup
    findings = findings_of(tables)
    is_slower = kind == "slower than dense"  # then another trial is chosen, and what is said of accuracy is of that
    assert kinds(findings) - ({"accuracy loss"} if is_slower else set()) == ({kind} if kind else set())
    assert findings.headline.trial is not None
    assert (findings.headline.trial["trial_id"] == best["trial_id"]) != is_slower
    assert findings.headline.verdict == ("with reservations" if kind else "no limit stated")


@pytest.mark.parametrize(("kept", "is_named"), [(2, True), (3, False)])
def test_collapsed_layers(kept: int, is_named: bool, findings_of: Callable[[Tables], Findings]) -> None:
    tables = small()
    best = best_row(tables)["trial_id"]
    layer = next(row for row in tables.layers if row["trial_id"] == best and row["out_channels_dense"] == 16)
    layer["out_channels"] = kept
    findings = findings_of(tables)
    assert ("collapsed layers" in kinds(findings)) == is_named
    if is_named:
        assert f"{layer['layer']}: 2 of 16 channels kept" in findings.risks[0].details


def test_warnings_of_the_best_trial_and_of_the_run(findings_of: Callable[[Tables], Findings]) -> None:
    tables = small()
    best_row(tables)["warnings"] = ["budget missed by 3 %"]
    tables.environment["warnings"] = ["node lost"]
    findings = findings_of(tables)
    assert kinds(findings) == {"warnings", "warnings of the run"}
    assert any(risk.details == ("budget missed by 3 %",) for risk in findings.risks)
    assert any(risk.details == ("node lost",) for risk in findings.risks)


@pytest.mark.parametrize(("drop", "is_named"), [(0.02, True), (0.001, False)])
def test_overfitting(drop: float, is_named: bool, findings_of: Callable[[Tables], Findings]) -> None:
    tables = small(finetune_epochs=5)
    best = best_row(tables)["trial_id"]
    epochs = {row["epoch"]: row for row in tables.history if row["trial_id"] == best}
    for epoch in (4, 5):
        epochs[epoch]["validation_accuracy"] = epochs[3]["validation_accuracy"] - drop * (epoch - 3) / 2
    findings = findings_of(tables)
    assert ("over-fitting" in kinds(findings)) == is_named


def test_overfitting_by_slow_and_obvious_means(findings_of: Callable[[Tables], Findings]) -> None:
    tables = small(finetune_epochs=6)
    # One step is within the limit of half a point and two are not; there are ties, rows in any order, a failed trial.
    draw = random.Random(3)
    for row in tables.history:
        row["validation_accuracy"] = 0.8 + 0.003 * draw.randrange(4)
    draw.shuffle(tables.history)
    synthetic.fail(tables, {tables.results[0]["trial_id"]})
    expected = set()
    for trial_id in {row["trial_id"] for row in tables.history}:
        epochs = sorted((row for row in tables.history if row["trial_id"] == trial_id), key=lambda row: row["epoch"])
        best, last = max(row["validation_accuracy"] for row in epochs), epochs[-1]["validation_accuracy"]
        if best - last >= OVERFIT_DROP:
            first = next(row["epoch"] for row in epochs if row["validation_accuracy"] == best)
            expected.add(f"{trial_id}: {percent(best)} at epoch {first}, {percent(last)} at the end")
    assert 1 < len(expected) < 11
    risks = [risk for risk in findings_of(tables).risks if risk.kind == "over-fitting"]
    listed = {line for risk in risks for line in risk.details}
    own = [risk.sentence for risk in risks if risk.is_about_best]
    assert listed == {line for line in expected if not line.startswith(best_row(tables)["trial_id"])}
    assert len(own) == len(expected) - len(listed)


@pytest.mark.parametrize(("last", "is_named"), [(0.5, False), (0.3, True)])
def test_overfitting_is_looked_for_after_the_last_pruning_step(
    last: float, is_named: bool, findings_of: Callable[[Tables], Findings]
) -> None:
    """The epochs before it trained a larger network, which may well be better."""
    tables = small(finetune_epochs=4)
    best = best_row(tables)["trial_id"]
    accuracies = {1: 0.9, 2: 0.95, 3: 0.5, 4: last}
    for row in tables.history:
        row["step"] = 1 if row["epoch"] < 3 else 2
        if row["trial_id"] == best:
            row["validation_accuracy"] = accuracies[row["epoch"]]
    assert ("over-fitting" in kinds(findings_of(tables))) == is_named


def test_a_method_no_better_than_random_is_named(findings_of: Callable[[Tables], Findings]) -> None:
    tables = small()
    randoms = {(row["ratio"], row["mode"]): row["accuracy"] for row in tables.results if row["method"] == "random"}
    for row in tables.results:
        if row["method"] == "wanda":
            row["accuracy"] = randoms[row["ratio"], row["mode"]] - 0.01
    findings = findings_of(tables)
    named = [risk for risk in findings.risks if risk.kind == "not better than random"]
    assert [risk.details for risk in named] == [("wanda: \N{MINUS SIGN}1.00 points",)]
    assert not named[0].is_about_best


def test_samples(findings_of: Callable[[Tables], Findings]) -> None:
    tables = small()
    tables.environment["samples"]["calibration_withheld_from_training"] = False
    tables.study["data"]["calibration"]["split"] = tables.study["evaluation"]["split"]
    findings = findings_of(tables)
    severity = {risk.kind: risk.severity for risk in findings.risks}
    assert severity["calibration shared with training"] == "info"
    assert severity["calibration on the evaluated split"] == "high"
    assert findings.headline.verdict == "with reservations"


def test_few_evaluated_images(findings_of: Callable[[Tables], Findings]) -> None:
    assert "few images" in kinds(findings_of(small(num_evaluated=360)))


def test_what_was_not_measured_is_said(findings_of: Callable[[Tables], Findings]) -> None:
    findings = findings_of(small(timed=False, methods=("wanda",)))
    assert {"not measured", "no control"} <= kinds(findings, above_info=False)
    assert findings.headline.speedup is None
    assert "speed" not in findings.headline.sentence


def test_ranking_is_over_shared_cells_only(tmp_path: Path) -> None:
    tables = small(ratios=(0.2, 0.5))
    accuracies = {"magnitude": (0.9, 0.8), "wanda": (0.91, 0.7), "random": (0.6, 0.5)}
    for row in tables.results:
        row["accuracy"] = accuracies[row["method"]][row["ratio"] == 0.5]
    failing = {row["trial_id"] for row in tables.results if row["method"] == "magnitude" and row["ratio"] == 0.5}
    ranking = rank_methods(StudyFrames.load(synthetic.fail(tables, failing).write(tmp_path)))
    assert [rank.label for rank in ranking] == ["wanda", "magnitude", "random"]
    wanda, magnitude, random = ranking
    assert wanda.mean_accuracy == pytest.approx(0.91)
    assert wanda.num_cells == magnitude.num_cells == 2
    assert wanda.gain_over_random == pytest.approx((0.31 + 0.2) / 2)
    assert magnitude.gain_over_random == pytest.approx(0.3)
    assert random.gain_over_random is None
    assert (wanda.wins, magnitude.wins) == (2, 0)


def test_best_of_every_cell_and_the_smallest_model_within_a_point(findings_of: Callable[[Tables], Findings]) -> None:
    tables = small(ratios=(0.2, 0.4), budgets=("macs=0.5",))
    findings = findings_of(tables)
    for cell in findings.cells:
        key = ("ratio", "requested_budget")
        rows = [row for row in tables.results if all(row[name] == cell.trial[name] for name in key)]
        assert cell.trial["accuracy"] == max(row["accuracy"] for row in rows)
        assert cell.runner_up is not None
        others = [row["accuracy"] for row in rows if row["method"] != cell.trial["method"]]
        assert cell.runner_up["accuracy"] == max(others)
    assert len(findings.cells) == 3
    near = [row["macs"] for row in tables.results if 100 * (row["accuracy_dense"] - row["accuracy"]) <= 1]
    assert findings.smallest_within_a_point is not None
    assert findings.smallest_within_a_point["macs"] == min(near)


def test_fine_tuning_that_was_for_nothing_is_named_and_not_called_over_fitting(
    findings_of: Callable[[Tables], Findings],
) -> None:
    tables = small(finetune_epochs=4)
    for row in tables.history:
        row["is_best"] = False
        row["validation_accuracy"] = 0.9 - 0.1 * row["epoch"]
    for row in tables.results:
        row["best_epoch"] = 0
    found = findings_of(tables)
    assert "over-fitting" not in kinds(found)
    (risk,) = (risk for risk in found.risks if risk.kind == "fine-tuning without gain")
    number = len(tables.results)
    assert risk.severity == "medium"
    assert f"{number} of {number} trials" in risk.sentence
    assert all(fact in risk.sentence for fact in ("validation accuracy", "before fine-tuning was kept"))
    tables.results[0]["best_epoch"] = 2
    (risk,) = (risk for risk in findings_of(tables).risks if risk.kind == "fine-tuning without gain")
    assert risk.severity == "info"
    assert f"{number - 1} of {number} trials" in risk.sentence
    assert tables.results[0]["trial_id"] not in risk.details


def test_accuracy_that_fine_tuning_cost_is_a_risk_though_an_epoch_was_kept(
    findings_of: Callable[[Tables], Findings],
) -> None:
    """As where the start does not compete; a point lost by every trial, then by the chosen trial or another alone."""
    tables = small(finetune_epochs=4)
    for row in tables.results:
        row["accuracy_repaired"] = row["accuracy_finetuned"] + 0.01
    number = len(tables.results)
    (risk,) = (risk for risk in findings_of(tables).risks if risk.kind == "accuracy lost in fine-tuning")
    assert (risk.severity, risk.is_about_best) == ("medium", True)
    assert f"{number} of {number} trials worse by 0.5 points or more, up to 1.0 points" in risk.sentence
    chosen = max(tables.results, key=lambda row: row["accuracy"])
    for loser in (chosen, min(tables.results, key=lambda row: row["accuracy"])):
        for row in tables.results:
            row["accuracy_repaired"] = row["accuracy_finetuned"] + (0.01 if row is loser else -0.01)
        assert ("accuracy lost in fine-tuning" in kinds(findings_of(tables))) == (loser is chosen)
