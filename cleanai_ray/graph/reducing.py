"""Sums, means and norms over channels, and what is broadcast over them: channels are not followed to where none are."""

from __future__ import annotations

from typing import Any

import torch_pruning as tp

_REDUCTIONS = ("mean", "sum", "amax", "amin", "norm", "std", "var", "max", "min", "logsumexp")
"""Beginnings of the names of autograd's functions for them, in lower case; `linalg_vector_norm` counts as `norm`."""


def part_where_no_channels_pass(graph: tp.DependencyGraph) -> None:
    """Take the dependencies out of a graph that lead from channels to where there are none, and back.

    Whether what is computed from a smaller number of channels is right is for the trials of groups to tell.
    """
    for node in graph.module2node.values():
        if node.type != tp.ops.OPTYPE.ELEMENTWISE:
            continue
        if _reduces_channels(graph, node):
            for later in node.outputs:
                _part(node, later)
        for before in _broadcast(graph, node):
            _part(before, node)


def _part(one: Any, other: Any) -> None:
    one.dependencies = [dep for dep in one.dependencies if dep.target is not other]
    other.dependencies = [dep for dep in other.dependencies if dep.target is not one]


def _broadcast(graph: tp.DependencyGraph, node: Any) -> list[Any]:
    """Return the operands of an operation that are broadcast over its channels."""
    if len(node.inputs) < 2:
        return []
    shapes = [(before, shape) for before in node.inputs if (shape := _shape_of(before, node)) is not None]
    sizes = tuple(node.grad_fn._input_metadata[0].shape)
    infer = tp.dependency.shape_infer.infer_channels_between
    widths = [width for before, _ in shapes if (width := infer(graph, before, node)) is not None and width in sizes]
    width = max(widths, default=1)
    places = [place - len(sizes) for place, size in enumerate(sizes) if size == width > 1]
    return [
        before
        for before, shape in shapes
        if places and all(-place > len(shape) or shape[place] == 1 for place in places)
    ]


def _shape_of(before: Any, node: Any) -> tuple[int, ...] | None:
    """Return the shape of an operand as an operation reads it."""
    if before.type == tp.ops.OPTYPE.PARAMETER:
        return tuple(before.module.shape)
    for function, position in node.grad_fn.next_functions:
        if function is before.grad_fn and function is not None:
            return tuple(function._input_metadata[position].shape)
    return None


def _reduces_channels(graph: tp.DependencyGraph, node: Any) -> bool:
    """Return whether an operation reduces the one dimension that is as long as there are channels before it."""
    function = node.grad_fn
    name = str(function.name()).lower().removeprefix("linalgvector")
    if not name.startswith(_REDUCTIONS) or len(node.inputs) != 1:
        return False
    sizes, dims = getattr(function, "_saved_self_sym_sizes", None), getattr(function, "_saved_dim", None)
    if sizes is None:
        value = getattr(function, "_saved_self", None)
        sizes = None if value is None else value.shape
    if sizes is None or dims is None:
        return False
    dims = {_dimension(dim, len(sizes)) for dim in (dims if isinstance(dims, (tuple, list)) else (dims,))}
    width = tp.dependency.shape_infer.infer_out_channels_recursively(graph, node.inputs[0], [0])
    places = {place for place, size in enumerate(sizes) if size == width}
    return bool(places) and places <= dims


def _dimension(dim: int, number: int) -> int:
    """Return a dimension counted from the first; autograd tells those counted from the last as unsigned numbers."""
    return (dim - 2**64 if dim >= 2**63 else dim) % number
