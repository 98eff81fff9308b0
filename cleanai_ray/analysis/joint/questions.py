"""The questions about methods, answered from several runs at each ratio or budget."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from cleanai_ray.analysis.joint.answers import JointAnswer, JointRow
from cleanai_ray.analysis.joint.difference import JointDifference
from cleanai_ray.analysis.joint.evidence import compare_sides, over_runs, side_of
from cleanai_ray.analysis.joint.pairs import PairsOfRun, name_of_draw
from cleanai_ray.analysis.joint.study import JointRun, JointStudy, Row
from cleanai_ray.analysis.method_ranks import CONTROL
from cleanai_ray.analysis.questions.agreement import IMPORTANCE, Agreement
from cleanai_ray.analysis.questions.base import BeatsRandom, Question, Versus
from cleanai_ray.analysis.questions.global_or_local import GlobalOrLocal
from cleanai_ray.analysis.questions.ranking_change import SAME_RANKING, RankingChange
from cleanai_ray.analysis.questions.same_plan import SAME_PLAN, SamePlan
from cleanai_ray.analysis.questions.wanda_or_either import WandaOrEither
from cleanai_ray.analysis.removed_channels import correlation, overlap, removed_channels
from cleanai_ray.registry import QUESTIONS

_ONE_RUN = "Asked of single runs only: see the report of each."
_FEWEST_RANKED = 3

OfRun = Callable[[JointRun, Sequence[Row]], PairsOfRun]


def ask(joint: JointStudy) -> tuple[JointAnswer, ...]:
    """Return the answer to every question.

    The intervals of the primary question hold together over its ratios or budgets at 95 %; those of all others, which
    are exploratory, hold together over all questions (Bonferroni).
    """
    known: list[tuple[str, Question]] = [(key, QUESTIONS.get(key)()) for key in QUESTIONS.names()]
    known.sort(key=lambda item: item[1].position)
    answers = [_answer(joint, key, question) for key, question in known]
    shown = {primary: _count_told(answers, is_primary=primary) for primary in (True, False)}
    return tuple(
        replace(
            answer,
            rows=tuple(replace(row, found=row.found.among(shown[answer.is_primary])) for row in answer.rows),
        )
        for answer in answers
    )


def _count_told(answers: Sequence[JointAnswer], *, is_primary: bool) -> int:
    rows = [row for answer in answers if answer.is_primary == is_primary for row in answer.rows]
    return sum(row.found.narrowest is not None for row in rows)


def _answer(joint: JointStudy, key: str, question: Question) -> JointAnswer:
    rows, missing = _rows(joint, question)
    found = tuple(row for row in rows if row is not None)
    if not found and not missing:
        missing = "In no ratio or budget does every network have a pair of trials that can be compared."
    return JointAnswer(key, question.text, question.unit, found, key == joint.primary, "" if found else missing)


def _rows(joint: JointStudy, question: Question) -> tuple[list[JointRow | None], str]:
    """Return the rows of a question, and why there are none where it cannot be asked."""
    if isinstance(question, Versus):
        return _versus(joint, [(question.first, question.second)])
    if isinstance(question, WandaOrEither):
        return _versus(joint, [("wanda", "coverage"), ("wanda", "magnitude")])
    if isinstance(question, BeatsRandom):
        others = [name for name in joint.methods if name != CONTROL]
        return _versus(joint, [(name, CONTROL) for name in others], question.stage)
    if isinstance(question, GlobalOrLocal):
        if not all({"global", "local"} <= {row["mode"] for row in rows} for rows in joint.trials):
            return [], "The studies do not have both modes, local and global."
        return [_modes(joint, amount) for amount in joint.amounts], ""
    if isinstance(question, RankingChange):
        return _of_runs(joint, "order before repair against after it", _ranking, SAME_RANKING, is_yes_above=False)
    if isinstance(question, SamePlan):
        subject = "channels kept with two draws, intersection over union"
        return _of_runs(joint, subject, _plans, SAME_PLAN, is_yes_above=False)
    if isinstance(question, Agreement):
        return _of_runs(joint, "channels that coverage and magnitude or Taylor remove", _agreement)
    return [], _ONE_RUN


def _versus(
    joint: JointStudy, pairs: Sequence[tuple[str, str]], stage: str = "final"
) -> tuple[list[JointRow | None], str]:
    absent = sorted({name for pair in pairs for name in pair} - set(joint.methods))
    if absent or not pairs:
        return [], f"Not all runs have trials of {' and '.join(absent)}." if absent else "There is no other method."
    return [
        _row(amount, f"{first} against {second}", _pair(joint, amount, first, second, stage))
        for amount in joint.amounts
        for first, second in pairs
    ], ""


def _pair(joint: JointStudy, amount: str, first: str, second: str, stage: str) -> JointDifference | None:
    return compare_sides(joint, amount, side_of(joint, first), side_of(joint, second), stage=stage)


def _row(amount: str, subject: str, found: JointDifference | None, *, is_yes_above: bool = True) -> JointRow | None:
    return None if found is None else JointRow(amount, subject, found, is_yes_above)


def _modes(joint: JointStudy, amount: str) -> JointRow | None:
    def wide(row: Row) -> bool:
        return bool(row["mode"] == "global")

    def near(row: Row) -> bool:
        return bool(row["mode"] == "local")

    found = compare_sides(joint, amount, wide, near, cell=("label", "steps"))
    return _row(amount, "global against local, method by method", found)


def _of_runs(
    joint: JointStudy, subject: str, of_run: OfRun, threshold: float = 0.0, *, is_yes_above: bool = True
) -> tuple[list[JointRow | None], str]:
    rows = []
    for amount in joint.amounts:
        own = [[row for row in trials if row["amount"] == amount] for trials in joint.trials]
        tables = [of_run(run, trials) for run, trials in zip(joint.runs, own, strict=True)]
        rows.append(_row(amount, subject, over_runs(joint, tables, threshold=threshold), is_yes_above=is_yes_above))
    return rows, ""


def _by_draw(rows: Sequence[Row], *names: str) -> dict[tuple[object, ...], list[Row]]:
    """Return trials by columns, and by the draw of their calibration images, which comes last."""
    found: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in rows:
        found[(*(row[name] for name in names), name_of_draw(row))].append(row)
    return found


def _ranking(_: JointRun, rows: Sequence[Row]) -> PairsOfRun:
    """Return the rank correlation of methods before repair and after it, by cell and draw."""
    from scipy.stats import spearmanr  # a second to load

    values, grain = {}, 0.0
    for (*cell, draw), members in _by_draw(rows, "mode", "steps", "samples").items():
        orders = []
        for stage in ("pruned", "repaired"):
            means: dict[str, list[float]] = defaultdict(list)
            for row in members:
                if row["pruned"] is not None and row["repaired"] is not None:
                    means[row["label"]].append(row[stage])
            orders.append([float(np.mean(means[label])) for label in sorted(means)])
        if len(orders[0]) >= _FEWEST_RANKED and all(max(order) > min(order) for order in orders):
            values[tuple(cell), str(draw)] = float(spearmanr(*orders).statistic), None
            grain = max(grain, rank_step(len(orders[0])))
    return PairsOfRun(values, len(values), grain=grain)


def rank_step(count: int) -> float:
    """Return the smallest step of a rank correlation without ties: two neighbours change places.

    Spearman's is 1 - 6 S / (n (n^2 - 1)), S the sum of the squares of the differences of ranks, which is then two more.

    Args:
        count: What is ranked, at least two.
    """
    return 12 / (count * (count**2 - 1))


def _plans(run: JointRun, rows: Sequence[Row]) -> PairsOfRun:
    """Return the mean overlap of the channels that trials of two draws keep, over the methods that read the images."""
    means, count = [], 0
    readers = [row for row in rows if row["reads_data"] and row["final"] is not None and row["draw"] is not None]
    grouped: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    for row in readers:
        grouped[tuple(row[name] for name in ("label", "mode", "steps", "trial_seed", "samples"))].append(row)
    for members in grouped.values():
        pairs = [(one, two) for one, two in itertools.combinations(members, 2) if one["draw"] != two["draw"]]
        if pairs:
            first, second = (removed_channels(run.study, [pair[side]["trial_id"] for pair in pairs]) for side in (0, 1))
            overlaps = overlap(first, second)
            means += [float(overlaps.mean())] if len(overlaps) else []
            count += len(overlaps)
    return PairsOfRun({((), "all pairs"): (float(np.mean(means)), None)} if means else {}, count)


def _agreement(run: JointRun, rows: Sequence[Row]) -> PairsOfRun:
    """Return the mean correlation, over groups of layers, of what coverage and methods of weights remove, by draw."""
    values, count = {}, 0
    good = [row for row in rows if row["final"] is not None]
    for (*cell, draw), members in _by_draw(good, "mode", "steps", "samples").items():
        pairs = [
            (own["trial_id"], other["trial_id"])
            for own, other in itertools.product(members, members)
            if own["method"] == "coverage" and other["method"] in IMPORTANCE
        ]
        if not pairs:
            continue
        removed = removed_channels(run.study, [name for pair in pairs for name in pair])
        found = [correlation(channels[::2], channels[1::2]) for channels in removed.values()]
        means = [float(np.nanmean(each)) for each in found if np.isfinite(each).any()]
        if means:
            values[tuple(cell), str(draw)] = float(np.mean(means)), None
            count += len(pairs)
    return PairsOfRun(values, count)
