"""McNemar's test of two models on the same samples, and the interval of a median.

The statistics are scipy's. It is imported where it is called: that takes a second, and most processes need none of it.
"""

from __future__ import annotations

import numpy as np

from cleanai_ray.analysis.intervals import CONFIDENCE

NUM_RESAMPLES = 2000
"""Resamples of a bootstrap; an end of its interval has 50 beyond it."""


def mcnemar_p(lost: int, gained: int) -> float:
    """Return the two-sided p-value of McNemar's exact test: could both models be equally accurate?

    Of the samples that exactly one of two models gets right, each would then be the one's or the other's by a coin.
    Samples that both get right or wrong say nothing. Without any that differ it is 1.

    Args:
        lost: Samples that the first model alone gets right.
        gained: Samples that the second model alone gets right.
    """
    from scipy.stats import binomtest

    return float(binomtest(lost, lost + gained, 0.5).pvalue) if lost + gained else 1.0


def median_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the median of values, and its 95 % interval by the percentile bootstrap (seed 0).

    The values are taken for independent. Percentiles are asked for, since the bias-corrected interval is not defined
    where many values are equal.

    Args:
        values: At least 2 of them, [N].
    """
    from scipy.stats import bootstrap

    found = bootstrap(
        (values,),
        np.median,
        confidence_level=CONFIDENCE,
        n_resamples=NUM_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    interval = found.confidence_interval
    return float(np.median(values)), float(interval.low), float(interval.high)
