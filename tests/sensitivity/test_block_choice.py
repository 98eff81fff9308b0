"""The blocks that a budget is spent on: a greedy choice, beside every choice there is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cleanai_ray.graph.block import Block
from cleanai_ray.pruning.plan import BlockPlan
from cleanai_ray.sensitivity import BlockError
from cleanai_ray.sensitivity.block_choice import BlockChoice, Judge, choose_for_budget


def block(name: str, error: float, macs: float, **shares: float) -> BlockError:
    found = Block(name=name, form="block", end=None, shape=(1,))
    return BlockError(plan=BlockPlan(block=found, mean=(0.0,)), error=error, macs=macs, **shares)


def additive(blocks: Sequence[BlockError], saved: float, harm: Callable[[float], float]) -> Judge:
    """Errors of blocks add up, and narrowing saves the rest at a harm of its own."""
    known = {one.name: one for one in blocks}

    def judge(names: Sequence[str]) -> float:
        left = max(saved - sum(known[name].macs for name in names), 0.0)
        return sum(known[name].error for name in names) + harm(left)

    return judge


def least(blocks: Sequence[BlockError], judge: Judge) -> float:
    names = [one.name for one in blocks]
    return min(judge(some) for number in range(len(names) + 1) for some in combinations(names, number))


@settings(deadline=None, max_examples=60)
@given(
    errors=st.lists(st.floats(0.0, 2.0), min_size=1, max_size=6),
    share=st.floats(0.01, 0.3),
    saved=st.floats(0.05, 0.9),
    power=st.floats(1.0, 4.0),
)
def test_blocks_of_one_size_are_chosen_as_well_as_by_trying_every_set(
    errors: list[float], share: float, saved: float, power: float
) -> None:
    blocks = [block(str(place), error, share) for place, error in enumerate(errors)]
    judge = additive(blocks, saved, lambda left: left**power)
    choice = choose_for_budget(blocks, "macs", judge)
    assert choice.error == pytest.approx(least(blocks, judge), abs=1e-9)
    assert choice.error == pytest.approx(judge(choice.names), abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.floats(0.01, 0.5)), max_size=5), st.randoms())
def test_the_result_is_never_worse_than_no_block(found: list[tuple[float, float]], random: object) -> None:
    """Whatever the judge says: here, anything."""
    blocks = [block(str(place), error, share) for place, (error, share) in enumerate(found)]
    said: dict[tuple[str, ...], float] = {}

    def judge(names: Sequence[str]) -> float:
        return said.setdefault(tuple(names), random.random())  # type: ignore[attr-defined]

    choice = choose_for_budget(blocks, "macs", judge)
    assert choice.error == said[choice.names] <= said[()] == choice.error_without
    assert choice.num_judged == len(said)


def test_a_block_that_computes_nothing_is_taken_first_and_costs_nothing() -> None:
    """Narrowing 0.4 costs 0.16; the rest without `idle` costs (0.4 - 0.1)^2, and without both 0.2^2 + 0.3."""
    blocks = [block("busy", 0.15, 0.1), block("idle", 0.0, 0.1)]
    choice = choose_for_budget(blocks, "macs", additive(blocks, 0.4, lambda left: left**2))
    assert choice.names == ("idle",)
    assert (choice.error_without, choice.error) == (pytest.approx(0.16), pytest.approx(0.09))
    assert choice.why == (
        "without idle the budget takes the outputs 0.09 nats from the dense model's on images held back; "
        "with all blocks 0.16"
    )


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        # Alone worse than all narrowing, 0.16: not even judged.
        ([block("a", 0.2, 0.1), block("b", 0.9, 0.1)], "no block pays: a, the cheapest for what it saves, alone takes"),
        # Alone better, but not with what narrowing still costs: 0.1 + 0.09.
        ([block("a", 0.1, 0.1)], "no block pays: without a the budget takes the outputs 0.19 nats"),
        ([block("a", 0.1, 0.0)], "no residual block of the model saves anything"),
        ([], "no residual block of the model saves anything"),
    ],
)
def test_where_it_takes_nothing_it_says_why(blocks: list[BlockError], words: str) -> None:
    choice = choose_for_budget(blocks, "macs", additive(blocks, 0.4, lambda left: left**2))
    assert choice.names == ()
    assert choice.error == choice.error_without == pytest.approx(0.16)
    assert words in choice.why


def test_a_budget_that_layers_alone_cannot_meet_takes_blocks_until_it_is_met() -> None:
    """Layers save 0.3 at most, and 0.6 is asked for: that takes three blocks, the cheapest for what they save."""
    blocks = [block(name, error, 0.1) for name, error in (("a", 0.4), ("b", 0.1), ("c", 0.3), ("d", 0.2))]
    judge = additive(blocks, 0.6, lambda left: math.inf if left > 0.3 + 1e-9 else left)
    choice = choose_for_budget(blocks, "macs", judge)
    assert choice.names == ("b", "c", "d")
    assert choice.why.endswith("with all blocks the budget cannot be met")
    assert BlockChoice.from_dict(choice.to_dict()) == choice
    never = choose_for_budget(blocks, "macs", lambda names: math.inf)
    assert (never.names, never.error) == ((), math.inf)
    assert never.why == "the budget cannot be met, whatever blocks are removed"


def test_what_a_block_saves_is_of_what_the_budget_limits() -> None:
    """`a` is cheap for its MACs, and `b` for its parameters and its time."""
    blocks = [
        block("a", 0.01, 0.2, params=0.05, time=0.05),
        block("b", 0.01, 0.1, params=0.2, time=0.2),
    ]
    for resource, first in (("macs", "a"), ("params", "b"), ("size_mb", "b"), ("latency", "b")):
        tried: list[Sequence[str]] = []

        def judge(names: Sequence[str], tried: list[Sequence[str]] = tried) -> float:
            tried.append(tuple(names))
            return 1.0

        choose_for_budget(blocks, resource, judge)
        assert tried[1] == (first,)


def test_of_nested_blocks_one_is_taken() -> None:
    blocks = [block("outer", 0.02, 0.3), block("outer.inner", 0.01, 0.1)]
    choice = choose_for_budget(blocks, "macs", additive(blocks, 0.4, lambda left: left))
    assert choice.names == ("outer",)


def test_where_the_cheapest_does_not_pay_the_next_is_tried_and_no_third() -> None:
    blocks = [block("c", 0.03, 0.1), block("a", 0.01, 0.1), block("b", 0.02, 0.1)]
    for paying, expected in (("b", ("b",)), ("c", ())):
        choice = choose_for_budget(blocks, "macs", lambda names, paying=paying: 0.1 if paying in names else 0.5)
        assert choice.names == expected


def test_outputs_that_are_not_finite_are_not_told_as_a_budget_that_cannot_be_met() -> None:
    """`b` alone computes what breaks the rest, so without it the error is a number; nothing mends what is always so."""
    blocks = [block("a", 0.01, 0.1), block("b", 0.02, 0.1)]
    choice = choose_for_budget(blocks, "macs", lambda names: 0.5 if "b" in names else math.nan)
    assert "b" in choice.names
    assert choice.error == 0.5
    assert choice.why.endswith("with all blocks the outputs are not finite numbers")
    document = json.loads(json.dumps(choice.to_dict(), allow_nan=False))
    assert math.isnan(BlockChoice.from_dict(document).error_without)
    never = choose_for_budget(blocks, "macs", lambda names: math.nan)
    assert (never.names, math.isnan(never.error)) == ((), True)
    assert never.why == "the outputs are not finite numbers, whatever blocks are removed"


@pytest.mark.parametrize(
    ("error", "words"), [(math.nan, "the outputs are not finite numbers"), (math.inf, "the budget cannot be met")]
)
def test_a_block_without_which_there_is_no_error_is_not_taken(error: float, words: str) -> None:
    choice = choose_for_budget([block("a", 0.01, 0.1)], "macs", lambda names: error if names else 0.5)
    assert (choice.names, choice.error) == ((), 0.5)
    assert choice.why == f"no block pays: without a {words}, and with all blocks 0.5"
