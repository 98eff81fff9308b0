"""Whether trials remove the same channels: between draws of the calibration samples, and between methods."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from cleanai_ray.charts.frames import StudyFrames
from cleanai_ray.charts.numbers import plural
from cleanai_ray.charts.removed import correlation, overlap, removed_channels
from cleanai_ray.report.answers import AnswerVerdict, Draft, signed
from cleanai_ray.report.cells import CELL, grain_of
from cleanai_ray.report.comparisons import Comparison, compare, compare_cells, to_matrix

IMPORTANCE = ("magnitude", "taylor")
"""Methods that read weights and gradients, which coverage is compared with."""

WITHOUT_DATA = ("bn_scale", "fpgm", "lamp", "magnitude", "random")
"""Methods whose plan does not depend on the calibration samples."""

SAME_PLAN = 0.95
"""Overlap of kept channels from which on two plans count as the same."""

_CELL_OF_ALL = CELL[1:]
_MOST_PAIRS = 400


def relation_draft(studies: Mapping[str, StudyFrames], trials: pl.DataFrame) -> Draft:
    """Compare what coverage removes with what methods of weights and gradients remove, group of layers by group."""
    question = "Are coverage and importance related?"
    rows: list[tuple[str, float]] = []
    num_pairs = num_dropped = 0
    for name, study in studies.items():
        own = trials.filter(pl.col("study") == name)
        pairs, dropped = _pairs_of_methods(own)
        num_dropped += dropped
        ids = [trial_id for pair in pairs for trial_id in pair]
        groups = removed_channels(study, ids) if ids else {}
        num_pairs += len(pairs) if groups else 0
        for group, removed in groups.items():
            values = correlation(removed[::2], removed[1::2])
            if np.isfinite(values).any():
                rows.append((f"{name}: {group}" if len(studies) > 1 else group, float(np.nanmean(values))))
    if not rows:
        missing = "No two trials of coverage and of magnitude or Taylor removed channels in the same cell."
        return Draft("i", question, missing=missing, unit="correlation")
    found = compare_cells(np.array([[value] for _, value in rows]))
    counted = Comparison(
        found.effect, found.low, found.high, found.p_value, num_pairs, num_dropped, len(rows), found.num_positive
    )
    lowest, highest = (pick(rows, key=lambda row: row[1]) for pick in (min, max))
    remark = (
        f"By group of layers from {signed(lowest[1])} ({lowest[0]}) to {signed(highest[1])} ({highest[0]}). The tables "
        "hold which channels went, not their scores: it is Spearman's correlation of removed or kept."
    )
    subject = f"What coverage and magnitude or Taylor remove, over {plural(len(rows), 'group')} of layers"
    return Draft("i", question, counted, subject, remark, unit="correlation")


def _pairs_of_methods(trials: pl.DataFrame) -> tuple[list[tuple[str, str]], int]:
    keys = [*CELL, "seed"]
    columns = [*keys, "trial_id", "final"]
    coverage = trials.filter(pl.col("method") == "coverage").select(columns)
    other = trials.filter(pl.col("method").is_in(IMPORTANCE)).select(columns)
    both = coverage.join(other, on=keys, suffix="_other", nulls_equal=True)
    good = both.drop_nulls(["final", "final_other"]).sort("trial_id", "trial_id_other")
    num_dropped = len(both) - len(good)
    if len(good) > _MOST_PAIRS:
        good = good.gather_every(-(-len(good) // _MOST_PAIRS))
    return good.select("trial_id", "trial_id_other").rows(), num_dropped


def calibration_drafts(studies: Mapping[str, StudyFrames], trials: pl.DataFrame) -> list[Draft]:
    """Compare studies of one model and data that differ in the number, or in the draw, of their calibration samples."""
    questions = (
        "Are more calibration samples better?",
        "Does another draw of the calibration samples change the plan?",
    )
    settings = {name: _calibration(study) for name, study in studies.items()}
    alike = [
        (first, second)
        for first, second in itertools.combinations(studies, 2)
        if settings[first][0] == settings[second][0] and settings[first][1:] != settings[second][1:]
    ]
    sizes = [pair for pair in alike if settings[pair[0]][1] != settings[pair[1]][1]]
    draws = [pair for pair in alike if settings[pair[0]][1] == settings[pair[1]][1]]
    one = (
        "The tables hold one number and one draw of calibration samples; `cleanai compare` of studies that differ in it"
    )
    drafts = [
        Draft("h1", questions[0], missing=f"{one} answers this."),
        Draft("h2", questions[1], missing=f"{one} answers this.", unit="overlap"),
    ]
    if sizes:
        drafts[0] = _more_samples(trials, settings, sizes, questions[0])
    if draws or sizes:
        drafts[1] = _same_plan(studies, trials, draws or sizes, questions[1], is_draw=bool(draws))
    return drafts


def _calibration(study: StudyFrames) -> tuple[str, Any, Any]:
    """Return a study's model and data without its calibration; then the number of samples, and the seed of the draw."""
    data = dict(study.study.get("data") or {})
    calibration = data.pop("calibration", None) or {}
    fixed = {name: value for name, value in calibration.items() if name not in ("samples", "seed")}
    parts = [study.study.get("model"), data, fixed, study.study.get("evaluation")]
    return json.dumps(parts, sort_keys=True, default=str), calibration.get("samples"), calibration.get("seed")


def _more_samples(
    trials: pl.DataFrame, settings: Mapping[str, tuple[str, Any, Any]], pairs: list[tuple[str, str]], question: str
) -> Draft:
    readers = trials.filter(~pl.col("method").is_in(WITHOUT_DATA))
    first, second = max(pairs, key=lambda pair: abs((settings[pair[0]][1] or 0) - (settings[pair[1]][1] or 0)))
    many, few = sorted((first, second), key=lambda name: -(settings[name][1] or 0))
    units = ("label", *_CELL_OF_ALL)
    own, other = (readers.filter(pl.col("study") == name) for name in (many, few))
    found = compare(own, other, units, "final", grain=grain_of(trials))
    subject = f"{settings[many][1]} calibration samples against {settings[few][1]}, methods that read them"
    return Draft("h1", question, found, subject)


def _same_plan(
    studies: Mapping[str, StudyFrames],
    trials: pl.DataFrame,
    pairs: list[tuple[str, str]],
    question: str,
    *,
    is_draw: bool,
) -> Draft:
    units = ("label", *_CELL_OF_ALL)
    readers = trials.drop_nulls("final").filter(~pl.col("method").is_in(WITHOUT_DATA))
    frames = []
    for first, second in pairs:
        own, other = (readers.filter(pl.col("study") == name) for name in (first, second))
        both = own.join(other, on=[*units, "seed"], suffix="_other", nulls_equal=True)
        if len(both):
            removed = removed_channels(studies[first], both["trial_id"].to_list())
            values = overlap(removed, removed_channels(studies[second], both["trial_id_other"].to_list()))
            if len(values):
                frames.append(both.select(*units, "seed", pl.Series("overlap", values)))
    if not frames:
        return Draft(
            "h2", question, missing="No trials of two draws removed channels in the same cell.", unit="overlap"
        )
    pooled = pl.concat(frames).group_by([*units, "seed"]).agg(pl.mean("overlap"))
    found = compare_cells(to_matrix(pooled, units, "overlap"))
    verdict: AnswerVerdict = "cannot tell"
    if found.low is not None and found.high is not None:
        verdict = "yes" if found.high < SAME_PLAN else "no" if found.low > SAME_PLAN else "cannot tell"
    what = "two draws" if is_draw else "two numbers of calibration samples"
    remark = f"1 is the same plan; from {SAME_PLAN:g} on plans count as the same."
    subject = f"Channels kept with {what}, intersection over union, methods that read the samples"
    # The p-value of an overlap against zero answers nothing.
    bare = Comparison(found.effect, found.low, found.high, None, sum(map(len, frames)), 0, found.num_units)
    return Draft("h2", question, bare, subject, remark, settled=verdict, unit="overlap")
