"""Question h2: does another draw of the calibration samples change the plan."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from cleanai_ray.analysis.answers import AnswerVerdict, Draft
from cleanai_ray.analysis.comparisons import Comparison, compare_cells, to_matrix
from cleanai_ray.analysis.draws import ONE_DRAW, REPLICATE_UNITS, known_draws
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.method_ranks import CONTROL
from cleanai_ray.analysis.questions.base import Evidence, Question
from cleanai_ray.analysis.removed_channels import overlap, removed_channels
from cleanai_ray.registry import QUESTIONS

SAME_PLAN = 0.95
"""Overlap of kept channels above which two plans count as the same."""

_SOURCE = ("study", "samples", "draw")


@QUESTIONS.register("h2")
class SamePlan(Question):
    """The channels kept by trials that differ only in the draw of their calibration samples."""

    position = 110
    text = "Does another draw of the calibration samples change the plan?"
    unit = "overlap"

    def draft(self, evidence: Evidence) -> Draft:
        """Compare what is kept with two draws; with two numbers of samples where there are no two draws."""
        pairs, is_draw = _pairs_of_sources(known_draws(evidence.studies, evidence.trials))
        if not pairs:
            return Draft(missing=ONE_DRAW)
        frames = [frame for pair in pairs if (frame := _overlaps(evidence.studies, *pair)) is not None]
        plans = pl.concat(frames) if frames else pl.DataFrame(schema={"reads_data": pl.Boolean})
        read = plans.filter("reads_data")
        if read.is_empty():
            return Draft(missing="No trials of two draws removed channels in the same cell.")
        keys = ["label", *REPLICATE_UNITS]
        pooled = read.group_by([*keys, "seed"]).agg(pl.mean("overlap"))
        found = compare_cells(to_matrix(pooled, keys, "overlap"))
        what = "two draws" if is_draw else "two numbers of calibration samples"
        subject = f"Channels kept with {what}, intersection over union, methods that read the samples"
        # The p-value of an overlap against zero answers nothing.
        bare = replace(found, num_pairs=len(read), is_tested=False)
        remark = f"1 is the same plan; above {SAME_PLAN:g} plans count as the same.{_by_method(plans, read)}"
        return Draft(bare, subject, resolve=lambda own: (_verdict(own), remark), threshold=SAME_PLAN)


def _verdict(found: Comparison) -> AnswerVerdict:
    if found.low is None or found.high is None:
        return "cannot tell"
    return "yes" if found.high < SAME_PLAN else "no" if found.low > SAME_PLAN else "cannot tell"


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
    """Return the pairs of sources to compare, and True if each is two draws of one number of samples."""
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
    """Return the overlap of the channels that trials of two sources keep, one row per pair; None without a pair.

    Of the methods that read no data, only the control is kept: all others have one plan.
    """
    may_differ = pl.col("reads_data") | (pl.col("method") == CONTROL)
    own, other = (source.drop_nulls("final").filter(may_differ) for source in (first, second))
    keys = ["label", *REPLICATE_UNITS, "trial_seed"]
    both = own.join(other, on=keys, suffix="_other", nulls_equal=True)
    if both.is_empty():
        return None
    removed = removed_channels(studies[both["study"][0]], both["trial_id"].to_list())
    others = removed_channels(studies[both["study_other"][0]], both["trial_id_other"].to_list())
    overlaps: np.ndarray = overlap(removed, others)
    if not len(overlaps):
        return None
    seed, values = pl.col("trial_seed").alias("seed"), pl.Series("overlap", overlaps)
    return both.select("label", "method", "reads_data", *REPLICATE_UNITS, "samples", seed, values)
