"""The trial to take: the one that meets the study's limits best, or the knee of accuracy against cost, or none.

The cost is the share of the dense model's time where the study names a target, and else that of its MACs. A trial that
is slower than the dense model is never taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames, best_first
from cleanai_ray.analysis.intervals import interval_of
from cleanai_ray.analysis.limits import LIMITS, MAX_LOSS, limit_name, limit_text, meets, stated_limits, write_beyond
from cleanai_ray.analysis.numbers import NONE, milliseconds, p_text, percent, plural, points, quantity, times
from cleanai_ray.analysis.pareto import pareto_front
from cleanai_ray.analysis.risks.base import BLOCKING_LOSS, BLOCKING_SHARE
from cleanai_ray.analysis.score_words import ACCURACY, compared_text, score_text
from cleanai_ray.analysis.speed import where_timed
from cleanai_ray.analysis.wording import describe_trial


@dataclass(frozen=True)
class Recommendation:
    """The trial to take.

    Attributes:
        trial: Its row, as `StudyFrames.ok` has it; None where no trial qualifies.
        sentence: The recommendation, or that there is none.
        why: The reason for this trial.
        cost: Its cost against the dense model.
        runner_up: The row of the next best trial, if there is one.
        missing: One sentence per limit on what is missing, without its full stop, where no trial qualifies.
    """

    trial: dict[str, Any] | None
    sentence: str
    why: str = ""
    cost: str = ""
    runner_up: dict[str, Any] | None = None
    missing: tuple[str, ...] = ()

    @property
    def in_full(self) -> str:
        """The sentence, and those on what is missing."""
        return " ".join([self.sentence, *(f"{line}." for line in self.missing)])


def recommend(study: StudyFrames, where: str = "") -> Recommendation:
    """Return the trial to take under `recommend` of the study file; without it, the knee of accuracy against cost.

    Args:
        study: The study, as its choice sees it.
        where: On which images its accuracies are, for the end of a sentence (` on the 135 images that decide`); "" if
            all accuracies of the report are on the same.
    """
    if study.ok.is_empty():
        return Recommendation(None, "No trial can be recommended: none succeeded.")
    limits = stated_limits(study)
    return _within_limits(study, limits, where) if limits else _knee(study, where)


def _within_limits(study: StudyFrames, limits: dict[str, float], where: str) -> Recommendation:
    met = study.ok.filter(*(meets(name, value) for name, value in limits.items()))
    good = met.filter(~pl.col("is_slower"))
    words = ", ".join(limit_text(study, name, value) for name, value in limits.items())
    if good.is_empty() and len(met):
        return Recommendation(
            None, f"No trial can be recommended: {_slower(study, len(met))}, though they meet the limits ({words})."
        )
    if good.is_empty():
        missing = tuple(_nearest(study, limits, name, where) for name in limits)
        noun = "limit" if len(limits) == 1 else "limits"
        return Recommendation(None, f"No trial meets the {noun} of the study: {words}.", missing=missing)
    is_cheapest = "max_accuracy_loss" in limits
    order = best_first(good)
    if is_cheapest:
        order = order.sort("macs" if study.target is None else "time_share", nulls_last=True, maintain_order=True)
    cheapest = "the one with the least MACs" if study.target is None else "the fastest"
    what = cheapest if is_cheapest else "the most accurate"
    why = (
        f"{len(met)} of {plural(len(study.ok), _noun(study))} meet the limits ({words}){where}; this is {what} of them."
    )
    return _take(study, order, why + _left_out(study, len(met) - len(good)))


def _cost_of(study: StudyFrames) -> tuple[str, str]:
    """Return the column of a trial's cost relative to the dense model, and the cost in words."""
    return ("macs_share", "MACs") if study.target is None else ("time_share", f"latency in {study.target}")


def _slower(study: StudyFrames, count: int) -> str:
    verb = "is" if count == 1 else "are"
    return f"{plural(count, _noun(study))} {verb} slower than the dense model {where_timed(study.target)}"


def _left_out(study: StudyFrames, count: int) -> str:
    return f" Left out: {_slower(study, count)}." if count else ""


def _nearest(study: StudyFrames, limits: dict[str, float], name: str, where: str) -> str:
    """Say how near the trials that meet all other limits come to this one, which has been named."""
    limit, text = LIMITS[name], limit_name(study, name)
    text = text[0].upper() + text[1:]
    measured = study.ok.drop_nulls(limit.column)
    if measured.is_empty():
        return f"{text}: not measured in any trial"
    others = measured.filter(*(meets(other, value) for other, value in limits.items() if other != name))
    nouns = f"{_noun(study)}s"
    pool, which = (others, f"{nouns} that meet the rest") if len(others) and len(limits) > 1 else (measured, nouns)
    order = pool.sort([limit.column, "trial_id"], descending=[limit.is_least, False])
    nearest = order.row(0, named=True)
    met = len(pool.filter(meets(name, limits[name])))
    known = f"{met} of {len(pool)} {which} meet it" if met else "none meets it"
    verb, on = ("loses", where) if name == MAX_LOSS else ("has", "")
    has = f"{verb} {write_beyond(name, nearest[limit.column], limits[name])}{on} ({_named(nearest)})"
    return f"The nearest {has}" if len(limits) == 1 else f"{text}: {known}; the nearest {has}"


def _noun(study: StudyFrames) -> str:
    """Return what a row of a study is: a trial, or a configuration whose replicates differ in seed or draw alone."""
    columns = study.ok.columns
    return "configuration" if "num_replicates" in columns and max(study.ok["num_replicates"]) > 1 else "trial"


def _named(trial: dict[str, Any]) -> str:
    """Name a trial, or the configuration that it stands for: the numbers of a configuration are not the trial's own."""
    count = trial.get("num_replicates") or 1
    return str(trial["trial_id"]) if count < 2 else f"{count} trials like {trial['trial_id']}, taken together"


def _knee(study: StudyFrames, where: str) -> Recommendation:
    accurate = _usable(study)
    usable = accurate.filter(~pl.col("is_slower"))
    if usable.is_empty() and len(accurate):
        why = f"{_slower(study, len(accurate))}, and no other keeps its accuracy"
        return Recommendation(None, f"No trial can be recommended: {why}.")
    if usable.is_empty():
        best = study.ranked.row(0, named=True)
        lost = NONE if best["loss_points"] is None else f"{best['loss_points']:.1f} points below the dense model"
        missing = (
            f"Accuracy: the best ({_named(best)}) reaches {compared_text(best)}{where}, {lost}; where the "
            f"study sets no limit, a trial may lose at most {BLOCKING_LOSS:g} points and must not be near chance",
        )
        return Recommendation(None, "No trial can be recommended: all of them lost too much accuracy.", missing=missing)
    column, cost = _cost_of(study)
    known = usable.drop_nulls(column)
    if known.is_empty():
        return _take(study, best_first(usable), "The MACs were not recorded; this is the most accurate trial.")
    front = pareto_front(known, column)
    order = front.with_columns(_height(front, study, column).alias("height"))
    order = order.sort(["height", column], descending=[True, False])
    last = "smallest model" if study.target is None else "fastest model"
    why = (
        f"The study sets no limits, so this is the knee of the Pareto front of accuracy against {cost}: of its "
        f"{plural(len(front), _noun(study))}, the one farthest above the line from the {last} to the dense one."
    )
    if len(front) == 1:
        as_cheap = "with as few MACs" if study.target is None else f"and as fast in {study.target}"
        why = f"The study sets no limits, and no other trial is as accurate {as_cheap}."
    return _take(study, order, why + _left_out(study, len(accurate) - len(usable)))


def _usable(study: StudyFrames) -> pl.DataFrame:
    within = pl.col("loss_points").is_null() | (pl.col("loss_points") <= BLOCKING_LOSS)
    counted = pl.col("metric").fill_null(ACCURACY) == ACCURACY
    keeps = (pl.col("accuracy") >= (1 - BLOCKING_SHARE) * pl.col("accuracy_dense")).fill_null(True)
    return study.ok.filter(within & (counted | keeps) & ~pl.col("is_broken").fill_null(False))


def _height(front: pl.DataFrame, study: StudyFrames, cost: str) -> pl.Expr:
    """Return how far points lie above the chord of the front, both axes scaled to 1 (Satopaa et al. 2011, Kneedle)."""
    dense = study.dense.get("accuracy")
    costs = [*front[cost], *([1.0] if dense is not None else [])]
    accuracies = [*front["accuracy"], *([dense] if dense is not None else [])]
    wide, high = max(costs) - min(costs), max(accuracies) - min(accuracies)
    across = (pl.col(cost) - min(costs)) / wide if wide else pl.lit(0.0)
    up = (pl.col("accuracy") - min(accuracies)) / high if high else pl.lit(0.0)
    return up - across


def _take(study: StudyFrames, order: pl.DataFrame, why: str) -> Recommendation:
    chosen = _row(study, order, 0)
    runner_up = _row(study, order, 1) if len(order) > 1 else None
    interval = interval_of(chosen)
    words = f"Take {describe_trial(chosen)}, trial {chosen['trial_id']}: {score_text(chosen)}"
    words += f" (95 % interval {interval})" if interval else ""
    return Recommendation(chosen, f"{words}.", why, cost_in_words(chosen, study.target), runner_up)


def _row(study: StudyFrames, order: pl.DataFrame, place: int) -> dict[str, Any]:
    return study.ok.row(by_predicate=pl.col("trial_id") == order["trial_id"][place], named=True)


def cost_in_words(trial: dict[str, Any], target: str | None) -> str:
    """Return what a trial costs against the dense model, from its row."""
    parts = []
    if trial["loss_points"] is not None:
        test = "" if trial["mcnemar_p"] is None else f" (McNemar's test: {p_text(trial['mcnemar_p'])})"
        parts.append(f"{points(-trial['loss_points'] / 100, 2)} of accuracy{test}")
    if trial["macs_share"] is not None:
        parts.append(f"{percent(trial['macs_share'], 0)} of the MACs ({quantity(trial['macs'])})")
    if trial["params_share"] is not None:
        parts.append(f"{percent(trial['params_share'], 0)} of the parameters")
    if trial["speedup"] is not None:
        low, high = trial["speedup_low"], trial["speedup_high"]
        interval = "" if low is None or high is None else f" (95 % interval {low:.2f} to {times(high)})"
        where = "at batch 1" if target is None else f"in {target}"
        timed = f"{milliseconds(trial['latency_ms'])} {where}, {times(trial['speedup'])} the speed"
        parts.append(timed + interval)
    return f"Against dense: {'; '.join(parts)}." if parts else ""
