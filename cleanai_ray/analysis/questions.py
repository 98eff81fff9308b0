"""The questions that a study of pruning methods is there to answer, each answered from the tables alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import polars as pl

from cleanai_ray.analysis.agreement import relation_draft
from cleanai_ray.analysis.answers import Answer, Draft, settle, signed
from cleanai_ray.analysis.cells import CELL, gather, grain_of
from cleanai_ray.analysis.comparisons import Comparison, compare, holm
from cleanai_ray.analysis.draws import calibration_drafts
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.intervals import CONTROL
from cleanai_ray.analysis.numbers import plural
from cleanai_ray.analysis.ranking_change import ranking_draft

_METHOD_CELL = ("study", "method", "amount", "steps")


def answer_questions(studies: Mapping[str, StudyFrames]) -> tuple[Answer, ...]:
    """Answer every question from the trials of one study, or from those of several together.

    Cells of different studies are different cells: pairs are formed within a study only.
    """
    trials = gather(studies)
    drafts = [
        _best_metric(trials),
        _versus(trials, "b1", "coverage", "magnitude", "Is coverage better than magnitude?"),
        _versus(trials, "b2", "coverage", "taylor", "Is coverage better than Taylor?"),
        _product_of_both(trials),
        _measuring_anew(trials),
        _global_or_local(trials),
        _beats_random(trials, "f1", "pruned", "before repair"),
        _beats_random(trials, "f2", "repaired", "after repair"),
        ranking_draft(trials),
        *calibration_drafts(studies, trials),
        relation_draft(studies, trials),
    ]
    return settle(drafts)


def _of(trials: pl.DataFrame, method: str) -> pl.DataFrame:
    return trials.filter(pl.col("method") == method)


def _absent(trials: pl.DataFrame, *methods: str) -> str:
    missing = [name for name in methods if _of(trials, name).is_empty()]
    return f"The study has no trial of {' or '.join(missing)}." if missing else ""


def _name(trials: pl.DataFrame, method: str) -> str:
    count = _of(trials, method)["label"].n_unique()
    return f"{method} (mean of {count} metrics)" if count > 1 else method


def _versus(trials: pl.DataFrame, key: str, first: str, second: str, question: str) -> Draft:
    missing = _absent(trials, first, second)
    found = compare(_of(trials, first), _of(trials, second), CELL, "final", grain=grain_of(trials))
    subject = f"{_name(trials, first)} against {_name(trials, second)}"
    remark = "" if missing else _with_best_metric(trials, first, second)
    return Draft(key, question, found, subject, remark, missing)


def _with_best_metric(trials: pl.DataFrame, first: str, second: str) -> str:
    """Say what the best of several metrics does; it was chosen by the same accuracies, so it is given no test."""
    order = _metrics_by_mean(_of(trials, first))
    if len(order) < 2:
        return ""
    own = _of(trials, first).filter(pl.col("coverage_metric") == order[0])
    found = compare(own, _of(trials, second), CELL, "final", grain=grain_of(trials))
    return "" if found.effect is None else f"Its best metric on average, {order[0]}: {signed(found.effect)} points."


def _metrics_by_mean(trials: pl.DataFrame) -> list[str]:
    """Return the coverage metrics of trials, the most accurate on average first; over the cells that all of them have.

    Where they share none, each is averaged over its own; those whose trials all failed are left out.
    """
    count = trials["coverage_metric"].drop_nulls().n_unique()
    shared = trials.filter((pl.col("final").count().over([*CELL, "seed"]) == count) & pl.col("final").is_not_null())
    means = (shared if len(shared) else trials.drop_nulls("final")).group_by("coverage_metric").agg(pl.mean("final"))
    return means.sort(["final", "coverage_metric"], descending=[True, False])["coverage_metric"].drop_nulls().to_list()


def _best_metric(trials: pl.DataFrame) -> Draft:
    question = "Does one coverage metric serve best?"
    coverage = _of(trials, "coverage")
    metrics = sorted(set(coverage["coverage_metric"].drop_nulls()))
    if len(metrics) < 2:
        return Draft("a", question, missing="The study has fewer than two coverage metrics to compare.")
    own = {name: coverage.filter(pl.col("coverage_metric") == name) for name in metrics}
    order = _metrics_by_mean(coverage)
    if not order:
        return Draft("a", question, missing="Every trial of coverage failed.")
    best = order[0]
    rivals = [name for name in metrics if name != best]
    found = [compare(own[best], own[name], CELL, "final", grain=grain_of(trials)) for name in rivals]
    # It serves best only if it beats every rival, so the least clear comparison decides.
    weakest = max(range(len(rivals)), key=lambda index: _doubt(found[index]))
    remark = f"Against its other {len(rivals) - 1} rivals the lead is clearer. By mean accuracy: {' > '.join(order)}."
    subject = f"{best}, the best on average, against {rivals[weakest]}"
    return Draft("a", question, found[weakest], subject, remark if len(rivals) > 1 else "")


def _doubt(found: Comparison) -> tuple[bool, float]:
    return found.p_value is None, found.p_value if found.p_value is not None else 0.0


def _product_of_both(trials: pl.DataFrame) -> Draft:
    question = "Is weight x activation (wanda) better than either alone?".replace(" x ", " \N{MULTIPLICATION SIGN} ")
    missing = _absent(trials, "wanda", "coverage", "magnitude")
    if missing:
        return Draft("c", question, missing=missing)
    grain = grain_of(trials)
    found = {name: compare(_of(trials, "wanda"), _of(trials, name), CELL, "final", grain=grain) for name in _ALONE}
    # Better than either means better than both: the comparison that speaks least for it decides.
    decisive = min(_ALONE, key=lambda name: _evidence(found[name]))
    other = next(name for name in _ALONE if name != decisive)
    beyond = found[other].effect
    remark = "" if beyond is None else f"Against {_name(trials, other)}: {signed(beyond)} points."
    return Draft("c", question, found[decisive], f"wanda against {_name(trials, decisive)}", remark)


_ALONE = ("coverage", "magnitude")


def _evidence(found: Comparison) -> float:
    """Return how much speaks for an effect above zero: 1 - p above it, p - 1 below."""
    if found.effect is None or found.p_value is None:
        return 0.0
    return (1 - found.p_value) * (1 if found.effect > 0 else -1)


def _measuring_anew(trials: pl.DataFrame) -> Draft:
    question = "Does measuring coverage anew between steps (adaptive) help?"
    missing = _absent(trials, "adaptive", "coverage")
    several = trials.filter(pl.col("steps") > 1)
    if not missing and several.is_empty():
        missing = "Every trial prunes in one step, where adaptive is coverage: nothing is measured between steps."
    # Metrics of one cell share nearly everything: they are averaged into one observation of it.
    adaptive, coverage = (_of(several, name).filter(_in_both(several)) for name in ("adaptive", "coverage"))
    found = compare(adaptive, coverage, CELL, "final", grain=grain_of(trials))
    return Draft("d", question, found, "adaptive against coverage in several steps", missing=missing)


def _in_both(trials: pl.DataFrame) -> pl.Expr:
    shared = set(_of(trials, "adaptive")["coverage_metric"]) & set(_of(trials, "coverage")["coverage_metric"])
    return pl.col("coverage_metric").is_in(sorted(name for name in shared if name is not None))


def _global_or_local(trials: pl.DataFrame) -> Draft:
    question = "Is global better than local?"
    wide, near = (trials.filter(pl.col("mode") == name) for name in ("global", "local"))
    if wide.is_empty() or near.is_empty():
        return Draft("e", question, missing="The study does not have both modes, local and global.")
    grain = grain_of(trials)
    found = compare(wide, near, _METHOD_CELL, "final", grain=grain)
    effects = []
    for name in sorted(set(trials["method"])):
        own = compare(_of(wide, name), _of(near, name), ("study", "amount", "steps"), "final", grain=grain)
        effects += [f"{name} {signed(own.effect)}"] if own.effect is not None else []
    remark = f"By method, in points: {', '.join(effects)}." if len(effects) > 1 else ""
    return Draft("e", question, found, "global against local, cell by cell of each method", remark)


def _beats_random(trials: pl.DataFrame, key: str, stage: str, words: str) -> Draft:
    question = f"Does any method beat random, {words}?"
    others = sorted(set(trials["method"]) - {CONTROL})
    missing = _absent(trials, CONTROL)
    if not missing and not others:
        missing = "The study has no method but random."
    if not missing and not trials[stage].count():
        missing = f"No trial has an accuracy {words}."
    if missing:
        return Draft(key, question, missing=missing)
    grain = grain_of(trials)
    found = [compare(_of(trials, name), _of(trials, CONTROL), CELL, stage, grain=grain) for name in others]
    corrected = holm([one.p_value for one in found])
    better = [index for index, one in enumerate(found) if one.is_above_zero(corrected[index])]
    leading = max(range(len(others)), key=lambda index: _evidence(replace(found[index], p_value=corrected[index])))
    names = ", ".join(f"{others[index]} {signed(found[index].effect or 0.0)}" for index in better)
    count = f"{len(better)} of {plural(len(others), 'method')} beyond doubt, in points" if better else ""
    remark = f"Better than random: {count}: {names}." if better else "No method is better than random beyond doubt."
    chosen = replace(found[leading], p_value=corrected[leading])
    subject = f"{_name(trials, others[leading])}, the clearest of {plural(len(others), 'method')}, against random"
    all_worse = all(one.is_below_zero(value) for one, value in zip(found, corrected, strict=True))
    # One method that loses is no answer to whether any wins.
    undecided = chosen.effect is not None and chosen.effect < 0 and not all_worse
    return Draft(key, question, chosen, subject, remark, settled="cannot tell" if undecided else None)
