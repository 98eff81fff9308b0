"""What the mean of a table of runs and draws would vary by, if its units, its draws and its images were drawn anew.

Runs are units, in groups: trainings of a network, or networks of one kind. Draws of calibration images and the scored
images are the same in all runs, so that they are crossed with them. The error of the mean has three parts:

* units: the variance of the means of units within their group, which also contains all that is nested in a unit. This
  is the variance that a hierarchical bootstrap has, which draws n - 1 of n units of each group with replacement, takes
  along all that is nested in them, and draws no further (Davison and Hinkley, Bootstrap Methods, 1997, section 3.8; Rao
  and Wu, JASA 83, 1988); a mean needs no resampling for it. Percentiles of a bootstrap of so few units would be too
  narrow, so that the interval is Student's.
* draws: the variance of the means of draws, less what the first part contains of it. With three draws it cannot be
  told well what all runs share from what each run has of its own; the interval errs on the side of the first.
* images: likewise, and there are many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cleanai_ray.analysis.joint.error_parts import Part

Table = NDArray[np.float64]

FEWEST_FREEDOM = 2
"""The fewest degrees of freedom of units that an interval needs."""

FEWEST_DRAWS = 3
"""The fewest draws from which their common part is told."""

FEWEST_IMAGES = 30
"""The fewest images whose mean is taken to be normal."""


def weights_of(groups: Sequence[int]) -> Table:
    """Return the weight of each unit in the mean over groups of the means of their units, [R]."""
    own = np.asarray(groups)
    sizes = np.array([(own == group).sum() for group in own], dtype=np.float64)
    return np.asarray(1 / (sizes * len(set(groups))), dtype=np.float64)


def error_parts(
    values: Table,
    groups: Sequence[int],
    images: Table | None = None,
    *,
    means: Table | None = None,
    grain: float = 0.0,
) -> tuple[Part, ...] | None:
    """Return the parts of the error of the mean over groups of the means of their units; None where too few units vary.

    Args:
        values: Units x draws.
        groups: The group of each unit, [R]; groups are taken as they are, and other units of them would be drawn.
        images: The same means image by image, units x images, if the images are the same in all units.
        means: The means of units over all that they have, [R], where that is more than the draws in `values`.
        grain: The least by which units are taken to vary.
    """
    units = _units(values.mean(axis=1) if means is None else means, groups, grain)
    if units is None:
        return None
    parts = [units]
    if values.shape[1] >= FEWEST_DRAWS:
        parts.append(_crossed(values, groups, values.shape[1] - 1))
    if images is not None and images.shape[1] >= FEWEST_IMAGES:
        parts.append(_crossed(images, groups, math.inf))
    return tuple(parts)


def _units(means: Table, groups: Sequence[int], grain: float) -> Part | None:
    """Return the part of the units. A group of one unit is taken to vary as the others do.

    Degrees of freedom are those of Welch and Satterthwaite, S^2 / sum(s^2 / f) for shares s of the variance S: with
    s^2 f / (f + 2) in the place of s^2, and S^2 less twice what the sum is then, both of which have the right mean.
    """
    own = [means[np.asarray(groups) == group] for group in sorted(set(groups))]
    known = [group for group in own if len(group) > 1]
    freedom = sum(len(group) - 1 for group in known)
    if freedom < FEWEST_FREEDOM:
        return None
    if len(known) < len(own):
        pooled = sum(float(((group - group.mean()) ** 2).sum()) for group in known) / freedom
        shares = [max(pooled, grain**2) / len(group) for group in own]
        return Part(math.sqrt(sum(shares)) / len(own), freedom)
    shares = [max(float(group.var(ddof=1)), grain**2) / len(group) for group in own]
    total = sum(shares)
    if total > 0:
        rest = sum(share**2 / (len(group) + 1) for share, group in zip(shares, own, strict=True))
        least = min(len(group) - 1 for group in own)
        return Part(math.sqrt(total) / len(own), min(max(total**2 / rest - 2, least), freedom))
    return Part(math.sqrt(total) / len(own), freedom)


def _crossed(table: Table, groups: Sequence[int], freedom: float) -> Part:
    """Return the part that columns make which all units share."""
    weights, (_, count) = weights_of(groups), table.shape
    columns = weights @ table
    squares, rest_freedom = 0.0, 0
    for group in set(groups):
        rows = table[np.asarray(groups) == group]
        rest = rows - rows.mean(axis=0) - rows.mean(axis=1, keepdims=True) + rows.mean()
        squares += float((rest**2).sum())
        rest_freedom += (len(rows) - 1) * (count - 1)
    contained = float((weights**2).sum()) * squares / rest_freedom
    error = math.sqrt(float(columns.var(ddof=1)) / count)
    return Part(error, freedom, math.sqrt(contained / count), freedom if math.isinf(freedom) else rest_freedom)
