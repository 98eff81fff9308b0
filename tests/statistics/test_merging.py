"""Sums in a tree of fixed shape: nothing counts twice, nothing is forgotten, and the bits are always the same."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cleanai_ray.statistics.merging import FAN_IN, MergeTree, merge_tree


def by_hand(values: list[float]) -> float:
    """The tree, written recursively: a run of up to 8 ** k values is the sum of its up to 8 parts."""
    if len(values) == 1:
        return values[0]
    size = 1
    while size * 8 < len(values):
        size *= 8
    total = by_hand(values[:size])
    for start in range(size, len(values), size):
        total += by_hand(values[start : start + size])
    return total


def work_off(values: list[Any], chance: random.Random, *, losses: int) -> Any:
    """Deliver values in any order, make sums when the tree offers them, and lose some on the way."""
    tree = MergeTree(len(values))
    todo = list(range(len(values)))
    sums: list[tuple[int, int]] = []
    while not tree.is_complete:
        ready = tree.take_ready()
        if ready is not None:
            sums.append(ready)
        if sums and (not todo or chance.random() < 0.5):
            node = sums.pop(chance.randrange(len(sums)))
            if losses and chance.random() < 0.5:
                losses -= 1
                todo += tree.forget(node)
                continue
            children = [tree.value(child) for child in tree.children(node)]
            total = children[0]
            for child in children[1:]:
                total = total + child
            tree.put(node, total)
        elif todo:
            number = todo.pop(chance.randrange(len(todo)))
            tree.put((0, number), values[number])
    return tree.value(tree.root)


floats = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=150)


@given(floats)
def test_the_tree_adds_runs_of_eight(values: list[float]) -> None:
    assert FAN_IN == 8
    assert merge_tree(values) == by_hand(values)


@given(floats, st.integers(0, 2**32), st.integers(0, 3))
def test_order_of_arrival_and_losses_change_no_bit(values: list[float], seed: int, losses: int) -> None:
    assert work_off(values, random.Random(seed), losses=losses) == merge_tree(values)


@given(st.integers(1, 600), st.integers(0, 2**32))
def test_every_value_counts_once(count: int, seed: int) -> None:
    values = [(number,) for number in range(count)]
    assert work_off(values, random.Random(seed), losses=2) == tuple(range(count))


def test_what_has_been_added_up_is_not_held() -> None:
    tree = MergeTree(64)
    held = []
    for number in range(64):
        tree.put((0, number), number)
        while (node := tree.take_ready()) is not None:
            tree.put(node, sum(tree.value(child) for child in tree.children(node)))
        held.append(len(tree._values))
    # Delivered in order: up to 7 values and 7 sums of eight wait at a time.
    assert max(held) == 7 + 7
    assert tree.value(tree.root) == 64 * 63 // 2
