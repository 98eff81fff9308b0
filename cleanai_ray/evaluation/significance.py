"""McNemar's test of two models on the same samples, and the interval of a median.

The statistics are scipy's. It is imported where it is called: that takes a second, and most processes do not need it.
"""

from __future__ import annotations

import numpy as np

from cleanai_ray.analysis.intervals import CONFIDENCE

NUM_RESAMPLES = 2000
"""Resamples of a bootstrap; 50 of them lie beyond each end of a 95 % interval."""


def mcnemar_p(lost: int, gained: int) -> float:
    """Return the two-sided p-value of McNemar's exact test of two models being equally accurate.

    Under that hypothesis, each sample that exactly one of the models gets right is equally likely to be either's.
    Samples that both get right or wrong carry no information. Without samples that differ, the p-value is 1.

    Args:
        lost: Number of samples that only the first model gets right.
        gained: Number of samples that only the second model gets right.
    """
    from scipy.stats import binomtest

    return float(binomtest(lost, lost + gained, 0.5).pvalue) if lost + gained else 1.0


def median_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the median of values, and its 95 % interval by the percentile bootstrap (seed 0).

    The values are assumed to be independent. Percentiles are used because the bias-corrected interval is not defined
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
