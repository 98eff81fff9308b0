"""torch-pruning's own pruner on an architecture, and whether the smaller model computes what it should."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
import torch_pruning
from torch import Tensor, nn
from zoo_architectures import Architecture, build
from zoo_trial import RATIO, Note

from cleanai_ray.graph.cutting import Cuts
from cleanai_ray.graph.finding import _side
from cleanai_ray.graph.rounding import judged_again
from cleanai_ray.graph.silencing import can_be_silenced, difference, probe_inputs, read, silenced
from cleanai_ray.nn.calls import tensors_in
from cleanai_ray.nn.copying import copied

SAME, OTHER, UNKNOWN = "exact", "another output", "not compared"


def try_torch_pruning(architecture: Architecture, note: Note) -> None:
    """Prune by torch-pruning as its own documentation does, and note what comes of it.

    The layers that make the output are ignored. The smaller model is compared, as our own is, with a dense copy in
    which the channels that torch-pruning removed are silent.

    Args:
        architecture: The architecture.
        note: Takes `reference`: the share of the MACs that is left, or why there is no smaller model; and `meaning`:
            `SAME`, `OTHER`, or `UNKNOWN` where layers cannot be silenced.
    """
    warnings.simplefilter("ignore")
    try:
        model, inputs = build(architecture)
    except ImportError:
        return
    try:
        dense = copied(model)
        with torch.no_grad():
            shapes = [value.shape for value in tensors_in(model(inputs))]
        pruner = torch_pruning.pruner.BasePruner(
            model,
            inputs,
            importance=torch_pruning.importance.GroupMagnitudeImportance(),
            pruning_ratio=RATIO,
            ignored_layers=list(_last_layers(model, shapes)),
            output_transform=lambda output: sum(value.sum() for value in tensors_in(output)),
        )
        before, _ = torch_pruning.utils.count_ops_and_params(model, inputs)
        removed = _Removed(pruner.DG, model)
        for group in pruner.step(interactive=True):
            removed.add(group)
            group.prune()
        with torch.no_grad():
            smaller = [value.shape for value in tensors_in(model(inputs))]
        after, _ = torch_pruning.utils.count_ops_and_params(model, inputs)
    except Exception as error:
        note("reference", f"fails ({type(error).__name__})")
        return
    note("reference", f"{after / before:.3f}" if after < before else "nothing removed")
    note("meaning", OTHER if smaller != shapes else meaning(dense, model, inputs, removed))


def _last_layers(model: nn.Module, shapes: list[Any]) -> set[nn.Module]:
    """Return the layers that are as wide as an output is long, which the user of torch-pruning would name."""
    sizes = {size for shape in shapes for size in shape[1:]}
    layers = [module for module in model.modules() if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))]
    last = {module for module in layers if module.weight.shape[0] in sizes}
    return last or set(layers[-1:])


def meaning(dense: nn.Module, smaller: nn.Module, inputs: Tensor, removed: _Removed) -> str:
    """Return whether a smaller model computes what the dense one does with the removed channels silent."""
    layers = [dense.get_submodule(name) for name, _ in removed.cuts if name not in removed.parameters]
    if not all(map(can_be_silenced, layers)):
        return UNKNOWN
    try:
        probe = probe_inputs(inputs)
        expected = silenced(dense, probe, removed.cuts, removed.parameters)
        found = read(smaller, probe, removed.cuts, removed.parameters)
    except Exception:
        return UNKNOWN
    place = judged_again((expected, found), (dense, smaller), probe, removed.cuts, removed.parameters, difference)
    return SAME if place is None else OTHER


class _Removed:
    """What torch-pruning removes from each layer, in the numbering of the dense model.

    Args:
        graph: Its graph.
        model: The model.
    """

    def __init__(self, graph: Any, model: nn.Module) -> None:
        self._graph, self._names = graph, {module: name for name, module in model.named_modules()}
        self._kept: dict[Any, np.ndarray] = {}
        self.cuts: Cuts = {}
        self.parameters: dict[str, int] = {}

    def add(self, group: Any) -> None:
        """Note a group that is removed next."""
        for dep, channels in group:
            node, side = dep.target, _side(self._graph, dep)
            name = self._names.get(node.module)
            if node.type == torch_pruning.ops.OPTYPE.PARAMETER:
                name = self._graph._param_to_name[node.module]
                self.parameters[name] = node.pruning_dim
            if name is None or self._graph.get_out_channels(node) is None:
                continue
            width = self._graph.get_in_channels(node) if side == "in" else self._graph.get_out_channels(node)
            kept = self._kept.setdefault((name, side), np.arange(width))
            present = np.unique(np.asarray(channels, dtype=np.int64))
            gone = self.cuts.get((name, side), np.empty(0, dtype=np.int64))
            self.cuts[name, side] = np.union1d(gone, kept[present])
            self._kept[name, side] = np.delete(kept, present)
