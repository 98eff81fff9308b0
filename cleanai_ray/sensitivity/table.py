"""Sensitivity curves as rows, and as the layer ratios of a study file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from cleanai_ray.importance.curves import GroupCurve, SensitivityCurves
from cleanai_ray.pruning.plan import PruningPlan


def curve_rows(curves: SensitivityCurves) -> list[dict[str, Any]]:
    """Return a row per group and removal, with the columns of sensitivity.parquet."""
    return [row for index, curve in enumerate(curves.groups.values()) for row in _rows(curve, index)]


def _rows(curve: GroupCurve, index: int) -> list[dict[str, Any]]:
    measured = {} if curve.estimated is not None else dict(curve.probes)
    divergences = curve.harm if curve.probes else np.full(len(curve.order), math.nan)
    return [
        {
            "group": curve.name,
            "group_index": index,
            "num_channels": curve.num_channels,
            "removed": count * curve.num_blocks,
            "channel_ratio": count / curve.num_units,
            "channel": unit,
            "error": error,
            "divergence": None if math.isnan(divergence) else float(divergence),
            "divergence_measured": measured.get(count),
            "estimated": curve.estimated,
        }
        for count, unit, error, divergence in zip(
            range(1, curve.num_units), curve.order, curve.errors, divergences, strict=True
        )
    ]


def layer_ratios(plan: PruningPlan) -> Mapping[str, Any]:
    """Return the keys of a study file's `pruning` section that give every group its width in a plan.

    Ratios are rounded down to four digits, which does not change the number of channels.
    """
    ratios = {}
    for group in plan.groups:
        if group.removed:
            ratios[group.name] = math.floor(len(group.removed) / group.num_channels * 1e4) / 1e4
    kept = [group.name for group in plan.groups if not group.removed]
    return {"layer_ratios": ratios, **({"ignored_layers": kept} if kept else {})}
