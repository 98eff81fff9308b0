"""The standard error of a mean difference of two methods over draws, cells and images, and what follows from it.

Budgets and modes are fixed: a study names them, and its answers are about them. What another study would draw anew is
the calibration images, the seeds, and the images that are scored. Draws and images are crossed, since every draw is
scored on the same images, so the error has two parts (Cameron, Gelbach and Miller, Journal of Business & Economic
Statistics 29, 2011): that of the means of draws, and that of the means of images, less what both contain. The first
rests on few draws, and `two_errors` says how both together are distributed.

With fewer than three draws that differ, cells take their place: the answer is then about cells like these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Unit = Literal["draws", "cells", "images"]

FEWEST_UNITS = 3
"""The fewest cells or draws that a test needs."""

FEWEST_IMAGES = 30
"""The fewest images whose mean is taken to be normal beside an error of units."""

_SAME = 1e-9


@dataclass(frozen=True)
class ImageMeans:
    """Differences image by image, in points.

    Attributes:
        by_draw: Mean over cells, draws x images.
        by_cell: Mean over draws, cells x images.
    """

    by_draw: Matrix
    by_cell: Matrix


@dataclass(frozen=True)
class Estimate:
    """The standard error of a mean.

    Attributes:
        error: The standard error.
        freedom: Degrees of freedom of the part of it that is not `image_error`.
        unit: What varies, besides the images.
        num_units: Their number.
        has_images: True if the scored images are taken to vary.
        image_error: Part of the error, in squares, that other images alone would make, beside that of the units.
    """

    error: float
    freedom: float
    unit: Unit
    num_units: int
    has_images: bool
    image_error: float = 0.0


def estimate(differences: Matrix, *, grain: float = 0.0, images: ImageMeans | None = None) -> Estimate | None:
    """Return the standard error of the mean of differences; None where too little varies to tell.

    Args:
        differences: Cells x draws, in points; NaN where there is no pair. Draws that agree in all cells count once.
        grain: Smallest step of a difference; units are taken to vary by that much at the least.
        images: The same differences image by image, if they are known.
    """
    whole = np.isfinite(differences).all(axis=1)
    draws = _distinct(differences[whole]) if 2 * whole.sum() >= len(differences) else []
    if len(draws) >= FEWEST_UNITS:
        means = differences[whole][:, draws].mean(axis=0)
        return _two_way(means, "draws", grain, None if images is None else images.by_draw[draws])
    cells = np.nanmean(differences, axis=1)
    if len(cells) >= FEWEST_UNITS:
        return _two_way(cells, "cells", grain, None if images is None else images.by_cell)
    if images is None or images.by_cell.shape[1] < FEWEST_UNITS:
        return None
    of_images = images.by_cell.mean(axis=0)
    error = float(np.sqrt(of_images.var(ddof=1) / len(of_images)))
    return Estimate(max(error, grain / len(of_images)), len(of_images) - 1, "images", len(of_images), True)


def _distinct(differences: Matrix) -> list[int]:
    """Return the draws that differ from those before them in some cell."""
    kept: list[int] = []
    for draw in range(differences.shape[1] if len(differences) else 0):
        column = differences[:, draw]
        if all(np.abs(column - differences[:, other]).max() > _SAME for other in kept):
            kept.append(draw)
    return kept


def _two_way(means: Matrix, unit: Unit, grain: float, images: Matrix | None) -> Estimate:
    """Return the error of the mean of units, and of images where units x images are given."""
    count = len(means)
    between = max(float(means.var(ddof=1)), grain**2) / count
    if images is None or images.shape[1] < FEWEST_IMAGES:
        return Estimate(float(np.sqrt(between)), count - 1, unit, count, False)
    num_images = images.shape[1]
    rest = images - images.mean(axis=0) - images.mean(axis=1, keepdims=True) + images.mean()
    # The mean of each image over the units also varies with what is left of both, which `between` contains.
    shared = float((rest**2).sum()) / ((count - 1) * (num_images - 1)) / (count * num_images)
    of_images = max(float(images.mean(axis=0).var(ddof=1)) / num_images - shared, 0.0)
    error = float(np.sqrt(between + of_images))
    return Estimate(error, count - 1, unit, count, True, float(np.sqrt(of_images)))
