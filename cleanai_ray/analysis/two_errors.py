"""The distribution of an effect with two independent errors, one of which rests on few units: quantiles and p-values.

The error of a mean over a few draws and many images is s_d T + s_i Z: T has Student's t distribution with the degrees
of freedom of the draws, and Z the normal one. This is the solution of Behrens and Fisher; its intervals cover at least
as often as they say (Robinson, Annals of Statistics 4, 1976), also far out in the tails, where many comparisons are
shown together. One t distribution with Satterthwaite's degrees of freedom does not: where the few draws are alike by
chance, it takes the error for small and sure.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import stats
from scipy.optimize import brentq

_NODES = np.linspace(-9.0, 9.0, 1201)
_WEIGHTS = stats.norm.pdf(_NODES) / stats.norm.pdf(_NODES).sum()


def tail(distance: float, unit_error: float, freedom: float, image_error: float) -> float:
    """Return the probability that an error exceeds a distance, on one side.

    Args:
        distance: The distance, at least zero, in the unit of the errors.
        unit_error: Standard error over the units.
        freedom: Its degrees of freedom.
        image_error: Standard error over the images; 0 where they are not taken to vary.
    """
    if image_error == 0:
        return float(stats.t.sf(distance / unit_error, freedom)) if unit_error else float(distance == 0) / 2
    if unit_error < 0.01 * image_error:
        return float(stats.norm.sf(distance / image_error))
    return float(_WEIGHTS @ stats.t.sf((distance - image_error * _NODES) / unit_error, freedom))


@lru_cache(maxsize=4096)
def quantile(probability: float, unit_error: float, freedom: float, image_error: float) -> float:
    """Return the distance that an error exceeds with a probability on one side, the inverse of `tail`.

    Args:
        probability: The probability, in (0, 0.5).
        unit_error: Standard error over the units.
        freedom: Its degrees of freedom.
        image_error: Standard error over the images.
    """
    of_units = float(stats.t.isf(probability, freedom)) * unit_error
    of_images = float(stats.norm.isf(probability)) * image_error
    if image_error == 0:
        return of_units
    if unit_error < 0.01 * image_error:
        return of_images

    def excess(distance: float) -> float:
        return tail(distance, unit_error, freedom, image_error) - probability

    return float(brentq(excess, 0.0, 2.0 * (of_units + of_images), rtol=1e-10))
