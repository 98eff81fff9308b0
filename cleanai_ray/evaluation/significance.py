"""Confidence intervals, and tests of whether one model is worse than another by more than chance.

The statistics are scipy's. It is imported where it is called: that takes a second, and most processes do not need it.
"""

from __future__ import annotations

import numpy as np

CONFIDENCE = 0.95
"""Confidence level of every interval."""

NUM_RESAMPLES = 2000
"""Resamples of a bootstrap; 50 of them lie beyond each end of a 95 % interval."""

BROKEN_SHARE = 0.1
"""A model is broken when it has surely kept no more than this share of the dense model's lead over chance."""


def wilson_interval(num_hits: int, num_samples: int) -> tuple[float, float]:
    """Return the 95 % interval of a share by Wilson (1927), which stays within [0, 1] near its ends.

    Args:
        num_hits: Samples that count.
        num_samples: All samples, at least 1.
    """
    from scipy.stats import binomtest

    interval = binomtest(num_hits, num_samples).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


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


def is_near_chance(high: float, dense: float, num_classes: int) -> bool:
    """Whether a model is broken: it surely knows next to nothing of what the dense model knows.

    Chance is 1 / classes. What the dense model scores above it is what it has learned, and the margin is a tenth of
    that: one rule for 10 classes and for 1,000, and for a dense model that is itself weak. The upper end of the
    interval is compared, so that few samples do not condemn a model. Where the dense model is no better than chance,
    the margin is nought.

    Args:
        high: Upper end of the 95 % interval of the model's accuracy, in [0, 1].
        dense: Accuracy of the dense model, in [0, 1].
        num_classes: Classes that there are to guess from.
    """
    chance = 1.0 / num_classes
    return high <= chance + BROKEN_SHARE * max(dense - chance, 0.0)
