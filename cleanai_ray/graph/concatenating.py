"""Concatenations: where the channels of each part begin, taken from the tensors that were concatenated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch_pruning as tp

_WRAPPED = 2**63
"""Dimensions that count from the end are told by autograd as unsigned numbers from here on."""


def measure_concatenation(node: Any) -> None:
    """Take the widths of what is concatenated from the tensors; torch-pruning infers them, wrongly behind a reshape."""
    shapes = _shapes(node)
    if shapes and node.grad_fn._saved_dim == 1:
        node.module.concat_sizes = [int(shape[1]) for shape in shapes]


def map_concatenation(graph: tp.DependencyGraph, node: Any) -> None:
    """Map the channels of parts of a concatenation that torch-pruning has not seen to be one of channels.

    It takes one of tokens' features for one of tokens, and one of two features for one with a class token where a class
    token is upstream. Channels they are if every part is as long as its layer before is wide; in the last dimension, if
    one is, since the widths behind a concatenation of tokens are inferred wrongly.
    """
    shapes = _shapes(node)
    if not shapes or any(dep.index_mapping[1] is not None for dep in node.dependencies):
        return
    dims, dim = len(shapes[0]), node.grad_fn._saved_dim
    dim = (dim - 2 * _WRAPPED if dim >= _WRAPPED else dim) % dims
    sizes = [int(shape[dim]) for shape in shapes]
    widths = [tp.dependency.shape_infer.infer_channels_between(graph, part, node) for part in node.inputs]
    same = [size == width for size, width in zip(sizes, widths, strict=True)]
    if dim == 0 or not (any(same) if dim == dims - 1 else all(same)):
        return
    ends = list(accumulate(sizes, initial=0))
    mapping = tp.dependency.index_mapping._ConcatIndexMapping
    for place, part in enumerate(node.inputs):
        for source, target, is_reverse in ((node, part, True), (part, node, False)):
            unmapped = (dep for dep in source.dependencies if dep.target is target and dep.index_mapping[1] is None)
            dep = next(unmapped, None)
            if dep is not None:
                dep.index_mapping[1] = mapping(offset=ends[place : place + 2], reverse=is_reverse)


def _shapes(node: Any) -> list[tuple[int, ...]]:
    """Return the shapes of the parts of a concatenation; none if they are unknown, or it is something else."""
    if node.type != tp.ops.OPTYPE.CONCAT or not hasattr(node.grad_fn, "_saved_dim"):
        return []
    parts = node.grad_fn.next_functions
    if len(parts) != len(node.inputs) or any(function is None for function, _ in parts):
        return []
    return [tuple(function._input_metadata[position].shape) for function, position in parts]


def joining(nodes: Sequence[Any], ended: Mapping[Any, Any]) -> list[Any]:
    """Return the concatenations that have an ended input, since the channels of the others would be counted wrongly."""
    return [
        node
        for node in nodes
        if node.type == tp.ops.OPTYPE.CONCAT and node not in ended and any(part in ended for part in node.inputs)
    ]
