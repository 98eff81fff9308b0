"""What the calibration samples decide: whether more are better, and whether another draw changes the plan.

The draws are those that a study sweeps, and those of several studies of one model and data that differ in them alone.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from cleanai_ray.analysis.answers import AnswerVerdict, Draft, signed
from cleanai_ray.analysis.cells import CELL, grain_of
from cleanai_ray.analysis.comparisons import Comparison, compare, compare_cells, to_matrix
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.intervals import CONTROL
from cleanai_ray.analysis.removed_channels import overlap, removed_channels

WITHOUT_DATA = ("bn_scale", "fpgm", "lamp", "magnitude", "random")
"""Methods whose plan does not depend on the calibration samples."""

SAME_PLAN = 0.95
"""Overlap of kept channels from which on two plans count as the same."""

ENOUGH = 0.5
"""Points that fewer samples may cost, with the whole 95 % interval, to count as enough."""

_QUESTIONS = ("Are more calibration samples better?", "Does another draw of the calibration samples change the plan?")
_SOURCE = ("study", "samples", "draw")
_UNITS = CELL[1:]


def calibration_drafts(studies: Mapping[str, StudyFrames], trials: pl.DataFrame) -> list[Draft]:
    """Compare trials that differ in the number, or in the draw, of their calibration samples and in nothing else."""
    kin = {name: _kin(study) for name, study in studies.items()}
    known = trials.drop_nulls(["samples", "draw"])
    known = known.with_columns(pl.col("study").replace_strict(kin, return_dtype=pl.String).alias("kin"))
    missing = (
        "The tables hold one number and one draw of calibration samples; lists in `data.calibration`, or `cleanai "
        "compare` of studies that differ in it, answer this."
    )
    more = _more_samples(known, grain_of(trials))
    same = _same_plan(studies, known)
    return [
        more or Draft("h1", _QUESTIONS[0], missing=missing),
        same or Draft("h2", _QUESTIONS[1], missing=missing, unit="overlap"),
    ]


def _kin(study: StudyFrames) -> str:
    """Return all that a study's trials have in common but the draws of the calibration samples."""
    data = dict(study.study.get("data") or {})
    calibration = data.pop("calibration", None) or {}
    fixed = {name: value for name, value in calibration.items() if name not in ("samples", "seed")}
    parts = [study.study.get("model"), data, fixed, study.study.get("evaluation")]
    return json.dumps(parts, sort_keys=True, default=str)


def _more_samples(trials: pl.DataFrame, grain: float) -> Draft | None:
    """Compare the most samples with the fewest; the numbers between are in the remark."""
    counts = {kin: sorted(set(own["samples"])) for (kin,), own in trials.group_by(["kin"], maintain_order=True)}
    chosen = max(counts, key=lambda kin: counts[kin][-1] - counts[kin][0], default=None)
    if chosen is None or len(counts[chosen]) < 2:
        return None
    *fewer, most = counts[chosen]
    readers = trials.filter((pl.col("kin") == chosen) & ~pl.col("method").is_in(WITHOUT_DATA))
    found = {count: _gain(readers, most, count, grain) for count in fewer}
    remarks = []
    if len(fewer) > 1:
        others = [f"{count} {_with_interval(found[count])}" for count in fewer[1:]]
        remarks.append(f"{most} against the numbers between, in points: {', '.join(others)}.")
    enough = next((count for count, one in found.items() if one.high is not None and one.high < ENOUGH), None)
    if enough is not None:
        remarks.append(f"{enough} are enough: they cost less than {ENOUGH:g} points, with the whole interval.")
    elif all(one.high is not None for one in found.values()):
        remarks.append(f"No fewer than {most} are sure to cost less than {ENOUGH:g} points.")
    subject = f"{most} calibration samples against {fewer[0]}, methods that read them"
    return Draft("h1", _QUESTIONS[0], found[fewer[0]], subject, " ".join(remarks))


def _gain(readers: pl.DataFrame, many: int, few: int, grain: float) -> Comparison:
    """Return what more samples gain, within one draw where both numbers have it: the fewer are part of the more."""
    own, other = (readers.filter(pl.col("samples") == count) for count in (many, few))
    is_shared = bool(set(own["draw"]) & set(other["draw"]))
    replicate = pl.struct(["trial_seed", "draw"] if is_shared else ["trial_seed"])
    both = pl.concat([own, other]).with_columns(replicate.rank("dense").cast(pl.Int64).alias("seed"))
    # Metrics of one cell share nearly everything: they are averaged into one observation of it.
    units = ("method", *_UNITS)
    return compare(both.head(len(own)), both.tail(len(other)), units, "final", grain=grain)


def _with_interval(found: Comparison) -> str:
    if found.effect is None:
        return "nothing to compare"
    if found.low is None or found.high is None:
        return signed(found.effect)
    return f"{signed(found.effect)} ({signed(found.low)} to {signed(found.high)})"


def _same_plan(studies: Mapping[str, StudyFrames], trials: pl.DataFrame) -> Draft | None:
    """Compare what trials keep that differ in the draw; in the number of samples where there are no two draws."""
    pairs, is_draw = _pairs_of_sources(trials)
    if not pairs:
        return None
    frames = [frame for pair in pairs if (frame := _overlaps(studies, *pair)) is not None]
    plans = pl.concat(frames) if frames else pl.DataFrame(schema={"method": pl.String})
    read = plans.filter(~pl.col("method").is_in(WITHOUT_DATA))
    if read.is_empty():
        missing = "No trials of two draws removed channels in the same cell."
        return Draft("h2", _QUESTIONS[1], missing=missing, unit="overlap")
    keys = ["label", *_UNITS]
    pooled = read.group_by([*keys, "seed"]).agg(pl.mean("overlap"))
    found = compare_cells(to_matrix(pooled, keys, "overlap"))
    verdict: AnswerVerdict = "cannot tell"
    if found.low is not None and found.high is not None:
        verdict = "yes" if found.high < SAME_PLAN else "no" if found.low > SAME_PLAN else "cannot tell"
    what = "two draws" if is_draw else "two numbers of calibration samples"
    subject = f"Channels kept with {what}, intersection over union, methods that read the samples"
    # The p-value of an overlap against zero answers nothing.
    bare = Comparison(found.effect, found.low, found.high, None, len(read), 0, found.num_units)
    remark = f"1 is the same plan; from {SAME_PLAN:g} on plans count as the same.{_by_method(plans, read)}"
    return Draft("h2", _QUESTIONS[1], bare, subject, remark, settled=verdict, unit="overlap")


def _by_method(plans: pl.DataFrame, read: pl.DataFrame) -> str:
    words = []
    for name, column in (("By method", "method"), ("By number of samples", "samples")):
        means = read.group_by(column).agg(pl.mean("overlap")).sort("overlap", column, descending=[True, False]).rows()
        if len(means) > 1:
            words.append(f"{name}: {', '.join(f'{key} {value:.2f}' for key, value in means)}.")
    control = plans.filter(pl.col("method") == CONTROL)["overlap"].mean()
    if isinstance(control, float) and control < 1:
        words.append(f"Two plans of {CONTROL}, the control: {control:.2f}.")
    return "".join(f" {sentence}" for sentence in words)


def _pairs_of_sources(trials: pl.DataFrame) -> tuple[list[tuple[pl.DataFrame, pl.DataFrame]], bool]:
    """Return the pairs of sources of trials that are compared, and whether they are two draws of one number."""
    draws, sizes = [], []
    for _, own in trials.group_by(["kin"], maintain_order=True):
        sources = own.select(_SOURCE).unique(maintain_order=True).rows()
        for first, second in itertools.combinations(sources, 2):
            if first[1] == second[1] and first[2] != second[2]:
                draws.append((first, second))
            elif first[1] != second[1]:
                sizes.append((first, second))
    nested = [pair for pair in sizes if pair[0][2] == pair[1][2]]
    return [(_only(trials, first), _only(trials, second)) for first, second in draws or nested or sizes], bool(draws)


def _only(trials: pl.DataFrame, source: Sequence[object]) -> pl.DataFrame:
    return trials.filter(*(pl.col(name) == value for name, value in zip(_SOURCE, source, strict=True)))


def _overlaps(studies: Mapping[str, StudyFrames], first: pl.DataFrame, second: pl.DataFrame) -> pl.DataFrame | None:
    """Return the overlap of what trials of two sources keep, a row a pair; None where there is no pair."""
    fixed = [name for name in WITHOUT_DATA if name != CONTROL]
    own, other = (source.drop_nulls("final").filter(~pl.col("method").is_in(fixed)) for source in (first, second))
    keys = ["label", *_UNITS, "trial_seed"]
    both = own.join(other, on=keys, suffix="_other", nulls_equal=True)
    if both.is_empty():
        return None
    removed = removed_channels(studies[both["study"][0]], both["trial_id"].to_list())
    others = removed_channels(studies[both["study_other"][0]], both["trial_id_other"].to_list())
    overlaps: np.ndarray = overlap(removed, others)
    if not len(overlaps):
        return None
    seed, values = pl.col("trial_seed").alias("seed"), pl.Series("overlap", overlaps)
    return both.select("label", "method", *_UNITS, "samples", seed, values)
