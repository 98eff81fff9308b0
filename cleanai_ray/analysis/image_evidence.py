"""The images that the models of a study get right, one by one, and comparisons of models on those of one role."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.paired import Bits, PairedDifference, pair_up
from cleanai_ray.storage.image_schemas import TEST, unpack


def hits_of(study: StudyFrames, trial_id: str) -> tuple[Bits, Bits] | None:
    """Return the images that a trial gets right and those that it was scored on, [N] each; None where not recorded."""
    rows = study.correct.filter(pl.col("trial_id") == trial_id).to_dicts()
    count = len(study.images)
    if not rows or not count or rows[0]["num_images"] != count:
        return None
    scored = np.ones(count, dtype=bool) if rows[0]["scored"] is None else unpack(rows[0]["scored"], count)
    return unpack(rows[0]["correct"], count), scored


def mask_of(study: StudyFrames, role: str | None) -> Bits:
    """Return which images have a role, [N]; where it is None, all that were scored of the split that is reported on."""
    if role is None:
        tested = study.images.filter(pl.col("role") == TEST)["split"].unique().to_list()
        if not tested:
            return np.ones(len(study.images), dtype=bool)
        return np.asarray(study.images["split"].is_in(tested).to_numpy(), dtype=bool)
    return np.asarray((study.images["role"] == role).to_numpy(), dtype=bool)


def against_dense(study: StudyFrames, trial: Mapping[str, Any], role: str | None = TEST) -> PairedDifference | None:
    """Return how a trial differs from the dense model on the images of a role.

    Tables of before single images were kept say it of all images at most: from `lost` and `gained`.

    Args:
        study: The study.
        trial: A row of its trials.
        role: The images; None for all of them.

    Returns:
        The difference; None where it is not known.
    """
    found = hits_of(study, trial["trial_id"])
    if found is not None:
        part = found[1] & mask_of(study, role)
        return pair_up(found[0][part], study.images["correct_dense"].to_numpy()[part]) if part.any() else None
    lost, gained, count = trial.get("lost"), trial.get("gained"), trial.get("num_evaluated")
    if role is None and lost is not None and gained is not None and count:
        return PairedDifference(lost, gained, count)
    return None


def between(study: StudyFrames, first: str, second: str, role: str | None = TEST) -> PairedDifference | None:
    """Return how two trials differ on the images of a role, the first minus the second; None where it is not known."""
    one, other = hits_of(study, first), hits_of(study, second)
    if one is None or other is None:
        return None
    part = one[1] & other[1] & mask_of(study, role)
    return pair_up(one[0][part], other[0][part]) if part.any() else None
