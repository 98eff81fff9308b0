"""Sums of many values in a tree of fixed shape: the same bits wherever and in whatever order the sums are made.

Floating-point addition is not associative, so the shape of the tree follows from the number of values alone: values are
added in runs of `FAN_IN` neighbours, the sums again in runs of `FAN_IN`, until one is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

Value = TypeVar("Value")
Node = tuple[int, int]
"""Level and position: (0, i) is value i; (l, i) is the sum of the nodes (l - 1, FAN_IN * i + k) for k < FAN_IN."""

FAN_IN = 8


def add_up(values: Sequence[Value]) -> Value:
    """Return the sum of neighbours, from the first to the last."""
    total: Any = values[0]
    for value in values[1:]:
        total = total + value
    return total


def merge_tree(values: Sequence[Value]) -> Value:
    """Return the sum of values in the fixed tree.

    Args:
        values: At least one; values of one kind that `+` adds.
    """
    level = list(values)
    while len(level) > 1:
        level = [add_up(level[start : start + FAN_IN]) for start in range(0, len(level), FAN_IN)]
    return level[0]


class MergeTree:
    """The sums of a fixed tree that exist, and those that can be made next.

    Values are opaque here (references to an object store, for instance). A value is dropped once it has been added up,
    so that no more than `FAN_IN` values a level are held beside those in progress.

    Args:
        num_values: Number of values to add up, at least 1.
    """

    def __init__(self, num_values: int) -> None:
        self._widths = [num_values]
        while self._widths[-1] > 1:
            self._widths.append(-(-self._widths[-1] // FAN_IN))
        self._values: dict[Node, Any] = {}
        self._ready: list[Node] = []

    @property
    def root(self) -> Node:
        """The node that is the sum of all."""
        return len(self._widths) - 1, 0

    @property
    def is_complete(self) -> bool:
        """True if the sum of all values exists."""
        return self.root in self._values

    def value(self, node: Node) -> Any:
        """Return the value at a node that exists."""
        return self._values[node]

    def children(self, node: Node) -> list[Node]:
        """Return the nodes whose sum a node is."""
        level, position = node
        last = min((position + 1) * FAN_IN, self._widths[level - 1])
        return [(level - 1, child) for child in range(position * FAN_IN, last)]

    def leaves(self, node: Node) -> list[int]:
        """Return the positions of the values whose sum a node is; that of the node itself where it is a value."""
        size = FAN_IN ** node[0]
        return list(range(node[1] * size, min((node[1] + 1) * size, self._widths[0])))

    def put(self, node: Node, value: Any) -> None:
        """Store the value at a node: one of the values to add up, or a sum."""
        self._values[node] = value
        for child in self.children(node) if node[0] else ():
            self._values.pop(child, None)
        if node == self.root:
            return
        parent = node[0] + 1, node[1] // FAN_IN
        if all(child in self._values for child in self.children(parent)):
            self._ready.append(parent)

    def take_ready(self) -> Node | None:
        """Return a node whose summands all exist, each node once; None if there is none at the moment."""
        return self._ready.pop(0) if self._ready else None

    def forget(self, node: Node) -> list[int]:
        """Forget a node and its summands, since one of them was lost; return the values that must be computed again."""
        for lost in (node, *(self.children(node) if node[0] else ())):
            self._values.pop(lost, None)
        return self.leaves(node)
