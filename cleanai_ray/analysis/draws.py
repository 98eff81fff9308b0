"""Trials that differ in the draw of their calibration samples and in nothing else.

The draws are those that a study sweeps, and those of several studies of one model and data that differ in them alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import polars as pl

from cleanai_ray.analysis.cells import CELL
from cleanai_ray.analysis.frames import StudyFrames

ONE_DRAW = (
    "The tables hold one number and one draw of calibration samples. To answer this, list several in "
    "`data.calibration`, or use `cleanai compare` on studies that differ in it."
)
"""The reason why a question about draws has no answer."""

REPLICATE_UNITS = CELL[1:]
"""The columns that make a cell, without the study: several studies may be draws of one."""


def known_draws(studies: Mapping[str, StudyFrames], trials: pl.DataFrame) -> pl.DataFrame:
    """Return the trials whose draw is known, with a column `kin`: equal for studies that differ in the draw alone.

    Args:
        studies: The frames of every study, by its name.
        trials: Their trials, as `cells.gather` returns them.
    """
    kin = {name: _kin(study) for name, study in studies.items()}
    known = trials.drop_nulls(["samples", "draw"])
    return known.with_columns(pl.col("study").replace_strict(kin, return_dtype=pl.String).alias("kin"))


def _kin(study: StudyFrames) -> str:
    """Return all that a study's trials have in common, apart from the draws of the calibration samples."""
    data = dict(study.study.get("data") or {})
    calibration = data.pop("calibration", None) or {}
    fixed = {name: value for name, value in calibration.items() if name not in ("samples", "seed")}
    parts = [study.study.get("model"), data, fixed, study.study.get("evaluation")]
    return json.dumps(parts, sort_keys=True, default=str)
