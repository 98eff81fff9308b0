"""The channels that torch-pruning's own pruner removes with its defaults, in the numbering of a dependency graph."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch_pruning as tp
from torch import nn

from cleanai_ray.errors import PruningError
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.graph.tracing import modules_named
from cleanai_ray.nn.attention import HeadProduct


def prune_by_peer(graph: ChannelGraph, ratio: float, ignored: Sequence[str]) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """Prune a copy of a graph's model by torch-pruning's magnitude pruner, in one step.

    It is `tp.pruner.MagnitudePruner` with `GroupMagnitudeImportance(p=2)` and every other argument at its default: each
    group of layers loses the same share of its channels, and widths are not rounded.

    Args:
        graph: The graph, with its model at full width; it is left as it is.
        ratio: The share of channels that each group loses, in [0, 1).
        ignored: Names of the layers that keep their output width.

    Returns:
        The smaller copy, and the channels that went by the name of the graph's group.

    Raises:
        PruningError: When the model has attention, which the defaults cut without regard to heads.
    """
    if any(isinstance(module, HeadProduct) for module in graph.model.modules()):
        raise PruningError(
            "the control torch_pruning is for models without attention, which torch-pruning's pruner cuts only where "
            "it is told how; leave torch_pruning out of sweep.controls.kinds"
        )
    model = copy.deepcopy(graph.model)
    names = {module: name for name, module in model.named_modules()}
    pruner = tp.pruner.BasePruner(  # MagnitudePruner is its deprecated name
        model,
        graph.example_inputs,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=modules_named(model, ignored),
        in_channel_groups={},  # it writes into its own default arguments
        out_channel_groups={},
        num_heads={},
        channel_groups={},
    )
    cut: dict[str, list[int]] = {}
    for group in pruner.step(interactive=True):
        for dependency, channels in group:
            name = names.get(dependency.target.module)
            if name is not None and pruner.DG.is_out_channel_pruning_fn(dependency.handler):
                cut.setdefault(name, []).extend(map(int, channels))
        group.prune()
    return model, _in_groups(graph, cut)


def _in_groups(graph: ChannelGraph, cut: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Return the channels of each group whose layers were cut, from the outputs that each layer lost.

    Only layers that compute channels are read: those that pass them on may be cut several times, in other numberings.
    """
    removed = {}
    for group in graph.groups:
        gone = [
            member.roots[np.isin(member.channels, cut[member.layer])]
            for member in group.members
            if member.side == "out" and member.layer in cut
        ]
        if gone:
            removed[group.name] = np.unique(np.concatenate(gone))
    return removed
