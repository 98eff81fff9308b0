"""The channels that torch-pruning's own pruner removes with its defaults, in the numbering of a dependency graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch_pruning as tp
from torch import nn

from cleanai_ray.errors import PruningError
from cleanai_ray.graph.explaining import DoesNotRunError, require_running
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.graph.tracing import modules_named
from cleanai_ray.nn.attention import HeadProduct
from cleanai_ray.nn.copying import copied

_ADVICE = "leave torch_pruning out of sweep.controls.kinds"

_ROOTS = (nn.modules.conv._ConvNd, nn.Linear, nn.LSTM)
"""Layers that torch-pruning begins groups of channels with."""


class PeerModelError(PruningError):
    """The model that torch-pruning leaves does not run.

    Args:
        message: A sentence.
        removed: The channels that went, by the name of the graph's group.
    """

    def __init__(self, message: str, removed: dict[str, np.ndarray]) -> None:
        super().__init__(message, removed)
        self.removed = removed

    def __str__(self) -> str:
        return str(self.args[0])


def prune_by_peer(graph: ChannelGraph, ratio: float, ignored: Sequence[str]) -> tuple[nn.Module, dict[str, np.ndarray]]:
    """Prune a copy of a graph's model by torch-pruning's magnitude pruner, in one step.

    It is `tp.pruner.MagnitudePruner` with `GroupMagnitudeImportance(p=2)` and every other argument at its default: each
    group of layers loses the same share of its channels, and widths are not rounded. Layers that the graph keeps at
    their width, because the model would not run or be wrong without some of their channels, are ignored.

    Args:
        graph: The graph, with its model at full width; it is left as it is.
        ratio: The share of channels that each group loses, in [0, 1).
        ignored: Names of the layers that keep their output width.

    Returns:
        The smaller copy, and the channels that went by the name of the graph's group.

    Raises:
        PruningError: When the model has attention, which the defaults cut without regard to heads, or when
            torch-pruning fails on it.
        PeerModelError: When the model that torch-pruning leaves does not run.
    """
    if any(isinstance(module, HeadProduct) for module in graph.model.modules()):
        raise PruningError(
            "the control torch_pruning is for models without attention, which torch-pruning's pruner cuts only where "
            f"it is told how; {_ADVICE}"
        )
    try:
        model, cut = _pruned_copy(graph, ratio, ignored)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise PruningError(f"torch-pruning fails on this model ({reason}); {_ADVICE}") from error
    removed = _in_groups(graph, cut)
    try:
        require_running(model, graph.example_inputs)
    except DoesNotRunError as error:
        told = f"the model that torch-pruning leaves does not run: {error}; {_ADVICE}"
        raise PeerModelError(told, removed) from error
    return model, removed


def _pruned_copy(graph: ChannelGraph, ratio: float, ignored: Sequence[str]) -> tuple[nn.Module, dict[str, list[int]]]:
    """Return a pruned copy of a graph's model, and the outputs that each layer lost."""
    model = copied(graph.model)
    names = {module: name for name, module in model.named_modules()}
    pruner = tp.pruner.BasePruner(  # MagnitudePruner is its deprecated name
        model,
        graph.example_inputs,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=modules_named(model, [*ignored, *_kept_whole(graph)]),
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
    return model, cut


def _kept_whole(graph: ChannelGraph) -> Iterator[str]:
    """Yield the names of layers whose outputs are in no group of a graph, and that torch-pruning would cut."""
    cut = {member.layer for group in graph.groups for member in group.members if member.side != "in"}
    for name, module in graph.model.named_modules():
        if isinstance(module, _ROOTS) and name not in cut:
            yield name


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
