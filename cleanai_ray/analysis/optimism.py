"""The points by which a chosen trial looks too good because the images that chose it are those it is reported on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cleanai_ray.analysis.frames import StudyFrames

NUM_SIMULATIONS = 4000
_SEED = 0


def simulated_optimism(study: StudyFrames, chosen: Mapping[str, Any]) -> float | None:
    """Return the points by which the accuracy of a chosen trial is too high; None where its images are not counted.

    The rivals are the trials of the same ratio or budget. Their true accuracies are taken to be those that were seen,
    drawn towards the mean by as much of their spread as chance explains (James and Stein 1961); see `winners_curse`.
    Chance is what differs from the dense model, image by image, for what both models get wrong is the same for all
    trials; where that was not recorded, the noise of one share is taken.

    Args:
        study: The study.
        chosen: The row of the chosen trial.
    """
    if chosen.get("metric") not in (None, "accuracy"):  # its noise is not that of a share
        return None
    rivals = study.ok.filter((pl.col("amount") == chosen["amount"]) & (pl.col("num_evaluated") > 0))
    if rivals.is_empty():
        return None
    accuracies, counts = rivals["accuracy"].to_numpy(), rivals["num_evaluated"].to_numpy()
    differ = (rivals["lost"] + rivals["gained"]).cast(pl.Float64).fill_null(float("nan")).to_numpy() / counts
    variance = np.where(np.isfinite(differ), differ, accuracies * (1 - accuracies)) / counts
    return 100 * winners_curse(accuracies, np.sqrt(variance))


def winners_curse(seen: NDArray[np.float64], errors: NDArray[np.float64]) -> float:
    """Return the mean excess of the largest of several noisy values over its true value, simulated with a fixed seed.

    Args:
        seen: Noisy values, [N].
        errors: Standard error of each, [N].
    """
    if len(seen) < 2:
        return 0.0
    spread, chance = float(seen.var(ddof=1)), float((errors**2).mean())
    kept = max(0.0, 1 - chance / spread) if spread > 0 else 0.0
    truth = seen.mean() + kept * (seen - seen.mean())
    noise = np.random.default_rng(_SEED).standard_normal((NUM_SIMULATIONS, len(seen))) * errors
    best = (truth + noise).argmax(axis=1)
    return float(noise[np.arange(NUM_SIMULATIONS), best].mean())
