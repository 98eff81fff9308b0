"""The layers before and after pruning: the rows of layers.parquet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from cleanai_ray.graph.graph import ChannelGroup
from cleanai_ray.nn.complexity import Complexity, LayerComplexity


def layer_rows(
    groups: Mapping[str, ChannelGroup],
    dense: Complexity,
    pruned: Complexity,
    kept_outputs: Mapping[str, np.ndarray],
) -> tuple[dict[str, Any], ...]:
    """Return a row per layer with the columns of layers.parquet except `trial_id`.

    A layer that went with a whole block has no channels left.

    Args:
        groups: The groups of the dense model.
        dense: Cost of the dense model.
        pruned: Cost of the pruned model.
        kept_outputs: Dense indices of the output channels each narrowed layer kept.
    """
    owner = {member.layer: group.name for group in groups.values() for member in group.members if member.side != "in"}
    after = {layer.name: layer for layer in pruned.layers}
    rows = []
    for layer in dense.layers:
        small = after.get(layer.name, _gone(layer))
        kept = kept_outputs.get(layer.name, np.arange(small.out_channels))
        rows.append(
            {
                "layer": layer.name,
                "layer_index": layer.index,
                "kind": layer.kind,
                "group": owner.get(layer.name),
                "out_channels_dense": layer.out_channels,
                "out_channels": small.out_channels,
                "in_channels_dense": layer.in_channels,
                "in_channels": small.in_channels,
                "params_dense": layer.params,
                "params": small.params,
                "macs_dense": layer.macs,
                "macs": small.macs,
                "removed_channels": np.setdiff1d(np.arange(layer.out_channels), kept).tolist(),
            }
        )
    return tuple(rows)


def _gone(layer: LayerComplexity) -> LayerComplexity:
    return replace(layer, in_channels=0, out_channels=0, params=0, macs=0)
