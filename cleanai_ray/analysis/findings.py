"""The results of a study as values: the answer, the best trial of every cell, the ranking and the risks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from cleanai_ray.analysis.answers import Answer
from cleanai_ray.analysis.chosen import reported_row, selection_view
from cleanai_ray.analysis.comparisons import ALPHA, holm
from cleanai_ray.analysis.decision import Decision, weigh
from cleanai_ray.analysis.frames import StudyFrames, best_first
from cleanai_ray.analysis.image_evidence import between
from cleanai_ray.analysis.intervals import Interval, interval_of
from cleanai_ray.analysis.method_ranks import MethodRank, rank_methods
from cleanai_ray.analysis.numbers import plural, times
from cleanai_ray.analysis.paired import PairedDifference, exact_p
from cleanai_ray.analysis.questions import answer_questions
from cleanai_ray.analysis.recommendation import Recommendation
from cleanai_ray.analysis.risks import find_risks
from cleanai_ray.analysis.risks.base import LARGE_LOSS, Risk
from cleanai_ray.analysis.score_words import dense_text, score_text, words_of
from cleanai_ray.analysis.speed import where_timed
from cleanai_ray.analysis.verdict import Verdict, judge
from cleanai_ray.analysis.wording import describe_trial
from cleanai_ray.storage.image_schemas import TEST


@dataclass(frozen=True)
class Headline:
    """The answer to the study's question.

    Attributes:
        verdict: The verdict on the chosen trial; see `verdict.judge`.
        sentence: The answer in one sentence.
        reasons: Why the verdict is not simply acceptable.
        trial: The row of the chosen trial (`StudyFrames.best`); None where every trial failed.
        interval: The 95 % interval of its accuracy.
        macs_reduction: Share of the dense model's MACs that was saved, at most 1.
        params_reduction: Share of its parameters that was saved.
        size_reduction: Share of the bytes of its weights that was saved.
        speedup: Dense over pruned median latency, in the target or at batch 1.
    """

    verdict: Verdict
    sentence: str
    reasons: tuple[str, ...]
    trial: dict[str, Any] | None
    interval: Interval | None
    macs_reduction: float | None
    params_reduction: float | None
    size_reduction: float | None
    speedup: float | None


@dataclass(frozen=True)
class CellBest:
    """The best trial at one ratio or budget, and the runner-up of another method.

    `is_separable` says if McNemar's exact test tells the two apart, image by image, corrected by Holm for all ratios
    and budgets; None where single images were not kept. `detectable` is the least difference, in points, that would be
    told.
    """

    amount: str
    trial: dict[str, Any]
    interval: Interval | None
    runner_up: dict[str, Any] | None
    is_separable: bool | None
    detectable: float | None = None


@dataclass(frozen=True)
class Findings:
    """Everything that a report says in words; `decision` says how sure the recommendation is."""

    headline: Headline
    cells: tuple[CellBest, ...]
    ranking: tuple[MethodRank, ...]
    smallest_within_a_point: dict[str, Any] | None
    risks: tuple[Risk, ...]
    answers: tuple[Answer, ...]
    recommendation: Recommendation
    decision: Decision


def find(study: StudyFrames) -> Findings:
    """Return the findings of a study."""
    risks = find_risks(study)
    return Findings(
        headline=_headline(study, risks),
        cells=_best_of_cells(study),
        ranking=rank_methods(study),
        smallest_within_a_point=_smallest_within(study, LARGE_LOSS),
        risks=risks,
        answers=answer_questions({study.name: study}),
        recommendation=study.choice.recommendation,
        decision=weigh(study),
    )


def reduction(value: float | None, dense: float | None) -> float | None:
    """Return the share of the dense model that was saved; negative where it grew, None where that is not known."""
    return None if value is None or not dense else 1 - value / dense


def _headline(study: StudyFrames, risks: tuple[Risk, ...]) -> Headline:
    best, choice = study.best, study.choice
    verdict, reasons = judge(study, risks)
    if best is None:
        sentence = f"No trial is acceptable: {_all_failed(study)}."
        errors = tuple(line for risk in risks if risk.is_blocking for line in risk.details)
        return Headline(verdict, sentence, errors, None, None, None, None, None, None)
    sentence = _describe_best(best, where_timed(study.target))
    if choice.has_test_images:
        number = best["num_evaluated"]
        images = "test images" if number is None else plural(number, "test image")
        sentence = f"{sentence.removesuffix('.')}, on {images} that decided nothing."
    if verdict == "not acceptable":
        which = "The chosen one" if choice.is_recommended else "The most accurate"
        sentence = f"No trial is acceptable. {which}, {sentence}"
    return Headline(
        verdict=verdict,
        sentence=sentence,
        reasons=reasons,
        trial=best,
        interval=interval_of(best),
        macs_reduction=reduction(best["macs"], best["macs_dense"]),
        params_reduction=reduction(best["params"], best["params_dense"]),
        size_reduction=reduction(best["size_bytes"], best["size_bytes_dense"]),
        speedup=best["speedup"],
    )


def _all_failed(study: StudyFrames) -> str:
    count = len(study.results)
    return "the only trial failed" if count == 1 else f"all {plural(count, 'trial')} failed"


def _describe_best(best: dict[str, Any], where: str) -> str:
    interval = interval_of(best)
    words = f"{describe_trial(best)} reaches {score_text(best)}"
    words += "" if interval is None else f" (95 % interval {interval})"
    if best["accuracy_dense"] is not None:
        words += f", {_against_dense(best)}"
    savings = _savings(best, where)
    return f"{words}, with {savings}." if savings else f"{words}."


def _against_dense(best: dict[str, Any]) -> str:
    lost = round(best["loss_points"], 1)
    dense = dense_text(best)
    if words_of(best.get("metric")).is_inverted:  # points are not of the score, which is better the lower it is
        return f"against the dense model's {dense}"
    if lost == 0:
        return f"the same as the dense model's {dense}"
    return f"{abs(lost):.1f} points {'below' if lost > 0 else 'above'} the dense model's {dense}"


def _savings(best: dict[str, Any], where: str) -> str:
    found = []
    for column, noun in (("macs", "MACs"), ("params", "parameters")):
        saved = reduction(best[column], best[f"{column}_dense"])
        if saved is not None:
            found.append(f"{abs(saved) * 100:.0f} % {'fewer' if saved >= 0 else 'more'} {noun}")
    if best["speedup"] is not None:
        found.append(f"{times(best['speedup'])} the speed {where}")
    return f"{', '.join(found[:-1])} and {found[-1]}" if len(found) > 1 else "".join(found)


def _best_of_cells(study: StudyFrames) -> tuple[CellBest, ...]:
    """Return the best of every ratio and budget on the images that decide, with accuracies on the others."""
    cells: list[CellBest] = []
    compared: list[PairedDifference | None] = []
    has_test = study.choice.has_test_images
    deciding = selection_view(study).ranked
    for amount in study.ok.sort("amount_order")["amount"].unique(maintain_order=True):
        ranked = deciding.filter(pl.col("amount") == amount)
        names = [ranked["trial_id"][0], *ranked.filter(pl.col("method") != ranked["method"][0])["trial_id"].head(1)]
        best, *others = [reported_row(study, name, has_test=has_test) for name in names]
        found = between(study, names[0], names[1], TEST if has_test else None) if others else None
        compared.append(found)
        cells.append(CellBest(amount, best, interval_of(best), others[0] if others else None, None))
    corrected = holm([None if pair is None else exact_p(pair.lost, pair.gained) for pair in compared])
    return tuple(
        cell
        if pair is None or p_value is None
        else replace(cell, is_separable=p_value < ALPHA, detectable=pair.detectable)
        for cell, pair, p_value in zip(cells, compared, corrected, strict=True)
    )


def _smallest_within(study: StudyFrames, points: float) -> dict[str, Any] | None:
    """Return the row of the smallest configuration that loses no more on the images that decide; None if all do."""
    deciding = selection_view(study).ok
    near = deciding.filter((pl.col("loss_points") <= points) & pl.col("macs").is_not_null())
    near = best_first(near).sort("macs", maintain_order=True)
    return reported_row(study, near["trial_id"][0], has_test=study.choice.has_test_images) if len(near) else None
