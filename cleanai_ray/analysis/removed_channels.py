"""The channels that trials removed, and how far two trials agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cleanai_ray.analysis.frames import StudyFrames

Removed = NDArray[np.bool_]


def removed_channels(study: StudyFrames, trial_ids: Sequence[str]) -> dict[str, Removed]:
    """Return the channels that trials removed, by dependency group: trials x channels, in the order of `trial_ids`.

    Read from the group's first layer in execution order; a group that not all of the trials have is left out.
    """
    wanted = pl.DataFrame({"trial_id": list(dict.fromkeys(trial_ids))}).with_row_index("row")
    layers = study.layers.join(wanted, on="trial_id").drop_nulls(["group", "removed_channels", "out_channels_dense"])
    layers = layers.filter(pl.col("layer_index") == pl.col("layer_index").min().over("group"))
    found = {}
    for (group,), rows in layers.group_by(["group"], maintain_order=True):
        if len(rows) != len(wanted):
            continue
        widest = int(rows["out_channels_dense"].max())  # type: ignore[arg-type]
        matrix: Removed = np.zeros((len(wanted), widest), dtype=np.bool_)
        for row, channels in rows.select("row", "removed_channels").rows():
            matrix[row, channels] = True
        place = {trial_id: row for row, trial_id in wanted.rows()}
        found[str(group)] = matrix[[place[trial_id] for trial_id in trial_ids]]
    return found


def overlap(first: Mapping[str, Removed], second: Mapping[str, Removed]) -> NDArray[np.float64]:
    """Return the Jaccard overlap of the channels kept by each pair of trials, over all groups; one number per pair."""
    shared = [name for name in first if name in second and first[name].shape == second[name].shape]
    if not shared:
        return np.empty(0)
    both = sum((~first[name] & ~second[name]).sum(axis=1) for name in shared)
    either = sum((~first[name] | ~second[name]).sum(axis=1) for name in shared)
    return np.asarray(both / np.maximum(either, 1), dtype=np.float64)


def correlation(first: Removed, second: Removed) -> NDArray[np.float64]:
    """Return Spearman's correlation of the channels that each pair of trials removes from a group.

    NaN where one of the two removes all or nothing. For marks with two values it is the phi coefficient.
    """
    share = first.mean(axis=1), second.mean(axis=1)
    spread = np.sqrt(share[0] * (1 - share[0]) * share[1] * (1 - share[1]))
    together = (first & second).mean(axis=1) - share[0] * share[1]
    return np.where(spread > 0, together / np.where(spread > 0, spread, 1.0), np.nan)
