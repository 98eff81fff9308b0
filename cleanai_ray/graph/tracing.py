"""From a model to torch-pruning's dependency graph. What it cannot follow keeps its width, or is named in an error."""

from __future__ import annotations

import fnmatch
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from cleanai_ray.errors import PruningError
from cleanai_ray.graph.attention import Attention, find_attention
from cleanai_ray.graph.channelwise import ChannelwisePruner, channelwise_classes
from cleanai_ray.graph.concatenating import joining, map_concatenation, measure_concatenation
from cleanai_ray.graph.explaining import explain, nodes_in, op_name
from cleanai_ray.graph.recurrent import RECURRENT, KeepingPruner, recurrent_as_one
from cleanai_ray.graph.reducing import part_where_no_channels_pass
from cleanai_ray.graph.splitting import align_split, map_split
from cleanai_ray.nn.attention import OpenAttention
from cleanai_ray.nn.calls import tensors_in
from cleanai_ray.nn.copying import leaving_no_trace

_MAX_DIMS = 4
"""Dimensions of a feature map. Reshaped to more, a tensor has its channels or its positions in blocks."""

_SHUFFLES = ("channelshuffle", "pixelshuffle", "pixelunshuffle")
"""Parts of the names of single operations that shuffle channels."""


class _Graph(tp.DependencyGraph):
    """A dependency graph that ends where channels or positions are in blocks: groups that reach them keep their width.

    A channel shuffle, windows of a feature map and attention heads are all a reshape to more dimensions, a
    transposition and a reshape back. In between, torch-pruning's index mappings fail, or fill the memory.

    Attributes:
        attention: The modules whose heads can be pruned.
        failed: Why indices cannot be mapped through operations at which the graph ends as well.
    """

    def _build_dependency(self, module2node: dict[Any, Any]) -> None:
        self.attention = [found for found in find_attention(self.model) if _set_apart(found, module2node)]
        super()._build_dependency(module2node)
        nodes = list(module2node.values())
        for node in nodes:
            measure_concatenation(node)
        ended = dict.fromkeys(_in_blocks(nodes))
        for node in joining(nodes, ended):
            ended[node] = None
        for node in ended:
            _end(node)
        self.failed: dict[Any, str] = {}
        while not self._maps_indices():
            pass
        self.nodes = module2node
        self.module2node: dict[Any, Any] = {}  # Torch-pruning would map the indices of these once more.

    def _maps_indices(self) -> bool:
        """Map the indices of all operations; where that fails, end the graph at the operation, and return False."""
        try:
            tp.dependency.shape_infer.init_shape_information(self)
            _align_splits(self)
            tp.dependency.index_mapping.update_index_mapping(self)
            _map_parts(self)
        except Exception as error:
            node = next((each for each in nodes_in(error) if each.type != tp.ops.OPTYPE.OUTPUT), None)
            if node is None or node in self.failed:
                raise
            self.give_up(node, error)
            return False
        return True

    def give_up(self, node: Any, error: Exception) -> None:
        """End the graph at an operation through which indices cannot be mapped."""
        reason = f"its channels cannot be followed through operation {op_name(node)}"
        self.failed[node] = f"{reason} ({' '.join(str(error).split()) or type(error).__name__})"
        _end(node)
        for joined in joining(list(self.module2node.values()), self.failed):
            self.failed[joined] = self.failed[node]
            _end(joined)


def _align_splits(graph: tp.DependencyGraph) -> None:
    for node in graph.module2node.values():
        align_split(node)


def _map_parts(graph: tp.DependencyGraph) -> None:
    for node in graph.module2node.values():
        map_split(graph, node)
        map_concatenation(graph, node)


def _measure_flattening(graph: tp.DependencyGraph, node: Any) -> None:
    """Take the number of positions of a flattened map from the tensors, for the same reason."""
    before = tuple(getattr(node.grad_fn, "_saved_self_sym_sizes", ()))
    if _moves_channels(node, before):
        graph.give_up(node, ValueError(f"{list(before)} becomes {list(_shape(node))}"))
    after = _shape(node) if node.type == tp.ops.OPTYPE.RESHAPE and len(before) > 2 else ()
    if not after or after not in ((before[0], math.prod(before[1:])), (*before[:2], math.prod(before[2:]))):
        return
    flatten = tp.dependency.index_mapping._FlattenIndexMapping
    for source in node.inputs:
        channels = tp.dependency.shape_infer.infer_channels_between(graph, source, node)
        if not channels or (len(after) == 2 and after[1] % channels):
            continue
        stride = after[1] // channels if len(after) == 2 else 1
        for dep in node.dependencies:
            if dep.target is source:
                dep.index_mapping[0] = flatten(stride=stride, reverse=True) if stride > 1 else None
        for dep in source.dependencies:
            if dep.target is node and source.type not in (tp.ops.OPTYPE.SPLIT, tp.ops.OPTYPE.UNBIND):
                dep.index_mapping[0] = flatten(stride=stride, reverse=False) if stride > 1 else None


def _moves_channels(node: Any, before: tuple[int, ...]) -> bool:
    """Return whether channels are taken for flattened, or features for a map, and are neither, as in ECA attention."""
    deps = [dep for each in (node, *node.inputs, *node.outputs) for dep in each.dependencies]
    own = [dep for dep in deps if dep.source is node or dep.target is node]
    flattening = tp.dependency.index_mapping._FlattenIndexMapping
    if (
        not before
        or node.type != tp.ops.OPTYPE.RESHAPE
        or not any(isinstance(dep.index_mapping[0], flattening) for dep in own)
    ):
        return False
    after = _shape(node)
    flattened = after == (before[0], math.prod(before[1:])) or after == (*before[:2], math.prod(before[2:]))
    unflattened = len(before) == 2 and after[0] == before[0] and len(after) > 2 and after[1] > 1
    return not flattened and not unflattened


def _end(node: Any) -> None:
    node.type = tp.ops.OPTYPE.OUTPUT
    node.inputs, node.outputs, node.dependencies = [], [], []


def _set_apart(attention: Attention, module2node: dict[Any, Any]) -> bool:
    """End the graph behind queries, keys and values, and let it begin again at the layer that reads the heads.

    Returns:
        True if it was done: not if the heads reach another layer as well, or did not run.
    """
    if any(layer not in module2node for layer in (*attention.inputs, attention.output)):
        return False
    sources, target = [module2node[layer] for layer in attention.inputs], module2node[attention.output]
    between: dict[Any, None] = {}
    waiting = [node for source in sources for node in source.outputs if node is not target]
    while waiting:
        node = waiting.pop()
        if isinstance(node.module, (nn.Linear, nn.Conv2d)) or node.type == tp.ops.OPTYPE.OUTPUT or node in sources:
            return False
        if node not in between:
            between[node] = None
            waiting += [later for later in node.outputs if later is not target]
    for node in between:
        for before in node.inputs:
            before.outputs = [later for later in before.outputs if later is not node]
        _end(node)
    for source in sources:
        source.outputs = []
    target.inputs = []
    return True


def _in_blocks(nodes: Sequence[Any]) -> Iterator[Any]:
    """Yield the operations that shuffle channels, and those from a reshape into blocks up to the one out of them."""
    for node in nodes:
        if node.type == tp.ops.OPTYPE.RESHAPE:
            yield from _within_blocks(node)
        elif node.type == tp.ops.OPTYPE.ELEMENTWISE and any(name in op_name(node).lower() for name in _SHUFFLES):
            yield node


def _within_blocks(reshape: Any) -> Iterator[Any]:
    """Yield a reshape that makes blocks, and the operations up to the first one without blocks; otherwise nothing."""
    before, after = tuple(getattr(reshape.grad_fn, "_saved_self_sym_sizes", ())), _shape(reshape)
    heads = _splits_heads(reshape, before, after)
    most = len(before) if heads else max(_MAX_DIMS, len(before))
    flat = len(before) == len(after) == _MAX_DIMS and before[1] == after[1] * after[2] != after[1]
    if not before or (len(after) <= most and not flat):
        return
    seen, waiting = {reshape}, [reshape]
    while waiting:
        node = waiting.pop()
        in_blocks = node.type != tp.ops.OPTYPE.RESHAPE if flat else len(_shape(node)) > most
        if node is reshape or in_blocks:
            waiting += [later for later in node.outputs if later not in seen]
            seen.update(node.outputs)
    yield from seen


def _splits_heads(reshape: Any, before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Return whether tokens [N, T, C] become heads [N, T, H, C / H], and not a map that a convolution reads."""
    if len(before) != 3 or len(after) != 4 or before[:2] != after[:2] or before[2] != after[2] * after[3]:
        return False
    if any("unsqueeze" in op_name(later).lower() for later in reshape.outputs):
        return False  # The packed projections of nn.MultiheadAttention, which torch-pruning knows.
    return not any(isinstance(later.module, (nn.Conv2d, nn.BatchNorm2d)) for later in reshape.outputs)


def _shape(node: Any) -> tuple[int, ...]:
    """Return the shape of an operation's (first) output."""
    return tuple(node.grad_fn._input_metadata[0].shape)


def trace(model: nn.Module, example_inputs: Tensor) -> tp.DependencyGraph:
    """Return the dependency graph of a model, with `attention`: the modules whose heads can be pruned.

    A group that reaches an operation of type OUTPUT must keep its width: the model's output, and channels in blocks.

    Raises:
        PruningError: When the model does not run, or a part of it cannot be traced; the message names the part.
    """
    try:
        pruners: dict[Any, Any] = {kind: ChannelwisePruner() for kind in channelwise_classes(model, example_inputs)}
        pruners |= {type(module): KeepingPruner() for module in model.modules() if isinstance(module, RECURRENT)}
        with torch.enable_grad(), _quiet(), leaving_no_trace(model), recurrent_as_one(model):
            graph = _Graph().build_dependency(
                model,
                example_inputs=example_inputs,
                forward_fn=lambda network, inputs: network(inputs),
                output_transform=tensors_in,
                customized_pruners=pruners,
            )
        graph.module2node = graph.nodes
        part_where_no_channels_pass(graph)
        for node in list(graph.module2node.values()):
            try:
                _measure_flattening(graph, node)
            except Exception as error:
                graph.give_up(node, error)
        return graph
    except Exception as error:
        raise PruningError(f"the model cannot be traced with the example inputs: {explain(error, model)}") from error


def modules_named(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """Return modules of a model with all below them; names and errors as for `names_matching`."""
    return [module for name in names_matching(model, names) for module in model.get_submodule(name).modules()]


def names_matching(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the names of a model's modules that names or patterns of `ignored_layers` stand for, once each.

    The packed layer `qkv` of opened attention is the three layers that replace it, by its name as by a pattern.

    Args:
        model: The model, its attention in separate layers.
        names: Names, or patterns of them with * and ?.

    Raises:
        PruningError: When the model has no module of a name, or that a pattern matches.
    """
    known: dict[str, tuple[str, ...]] = {}
    for name, module in model.named_modules():
        known[name] = (name,)
        if isinstance(module, OpenAttention):
            within = f"{name}." if name else ""
            known.setdefault(f"{within}qkv", tuple(f"{within}{part}" for part in ("q_proj", "k_proj", "v_proj")))
    found: dict[str, None] = {}
    for name in names:
        matched = [name] if name in known else fnmatch.filter(known, name) if set(name) & set("*?") else []
        if not matched:
            raise PruningError(f"ignored_layers names '{name}', which is not a module of the model")
        found |= dict.fromkeys(part for each in matched for part in known[each])
    return list(found)


def single_input(example_inputs: Any) -> Tensor:
    """Return the one tensor that a model is called with.

    Raises:
        PruningError: When there are several, or there is something else.
    """
    inputs = [example_inputs] if isinstance(example_inputs, Tensor) else list(example_inputs)
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor):
        raise PruningError(f"example_inputs holds {len(inputs)} values; allowed: one tensor, or a tuple of one")
    return inputs[0]


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
