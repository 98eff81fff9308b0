"""Splits of channels into parts: which part each reader reads, taken from autograd's own numbers of them.

torch-pruning takes the readers for the parts, in their order. They are not where a part is read twice or not at all,
or by operations in another order.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch_pruning as tp


def sizes_of_parts(node: Any) -> list[int]:
    """Return the sizes of the parts of a split; none if it is something else, or they are unknown."""
    function = node.grad_fn
    if node.type != tp.ops.OPTYPE.SPLIT or not hasattr(function, "_saved_dim"):
        return []
    if hasattr(function, "_saved_split_sizes"):
        return [int(size) for size in function._saved_split_sizes]
    if not hasattr(function, "_saved_split_size") or not hasattr(function, "_saved_self_sym_sizes"):
        return []
    size, whole = int(function._saved_split_size), int(function._saved_self_sym_sizes[_dimension(node)])
    return [min(size, whole - start) for start in range(0, whole, size)] if size else []


def _dimension(node: Any) -> int:
    dim = node.grad_fn._saved_dim
    return (dim - 2**64 if dim >= 2**63 else dim) % len(node.grad_fn._saved_self_sym_sizes)


def align_split(node: Any) -> None:
    """Give torch-pruning the size of the part that each reader of a split reads, in the order of the readers."""
    sizes = sizes_of_parts(node)
    if not sizes:
        return
    waiting: dict[Any, list[int]] = {}
    aligned = []
    for reader in node.outputs:
        numbers = waiting.setdefault(reader, _parts_read(node, reader))
        aligned.append(sizes[numbers.pop(0)] if numbers else sizes[0])
    node.module.split_sizes = aligned


def map_split(graph: tp.DependencyGraph, node: Any) -> None:
    """Map the channels of a split to those of its parts.

    Raises:
        LookupError: When it is unknown which part a reader reads.
    """
    sizes = sizes_of_parts(node)
    if not sizes or not hasattr(node.grad_fn, "_saved_self_sym_sizes") or _dimension(node) == 0:
        return
    widths = [tp.dependency.shape_infer.infer_out_channels_recursively(graph, before, [0]) for before in node.inputs]
    if widths != [sum(sizes)]:
        return
    ends = list(accumulate(sizes, initial=0))
    mapping = tp.dependency.index_mapping._SplitIndexMapping
    for reader in dict.fromkeys(node.outputs):
        numbers = _parts_read(node, reader)
        onward = [dep for dep in node.dependencies if dep.target is reader]
        back = [dep for dep in reader.dependencies if dep.target is node]
        if not len(numbers) == len(onward) == len(back):
            raise LookupError("it is unknown which of its parts are read where")
        for number, there, again in zip(numbers, onward, back, strict=True):
            there.index_mapping[0] = mapping(offset=ends[number : number + 2], reverse=False)
            again.index_mapping[0] = mapping(offset=ends[number : number + 2], reverse=True)


def _parts_read(node: Any, reader: Any) -> list[int]:
    """Return the numbers of the parts of a split that an operation reads, in the order of its operands."""
    return [number for function, number in reader.grad_fn.next_functions if function is node.grad_fn]
