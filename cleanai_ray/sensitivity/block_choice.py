"""The residual blocks that a budget is best spent on, beside narrower layers.

1. A judge tells how far from the dense model's the outputs are when some blocks are gone and layers are narrowed to
   what is left of the budget. It judges no block first.
2. Blocks whose error alone is below that, the lowest error for what they save first, may be worth their saving. The
   first is tried, with the layers narrowed anew, and if the judge does not prefer it the second. One that it prefers is
   taken.
3. That is repeated with the blocks taken so far, until none pays. So the result is never worse than no block, as the
   judge sees it.

Where blocks save the same and errors add up, with a price of narrowing that rises, no other set of blocks does better:
the errors of the cheapest 0, 1, 2, ... blocks are then convex. A block that alone does more harm than the whole budget
can never pay there, since narrowing spares at most all of its own harm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cleanai_ray.pruning.prune_result import PruneResult
from cleanai_ray.sensitivity.blocks import BlockError, nested

MOST_TRIED = 2
"""Blocks that are tried to join those that are taken, before the search ends."""

Judge = Callable[[Sequence[str]], float]
"""Returns the error of a model without some blocks, narrowed to the budget.

It is infinite where the budget cannot be met, and NaN where outputs are not finite, which is worse than any number.
"""


@dataclass(frozen=True, kw_only=True)
class BlockChoice:
    """The blocks that a budget is spent on.

    Attributes:
        names: The blocks, in execution order.
        error: The judge's error without them, in nats.
        error_without: Its error with all blocks.
        num_judged: Sets of blocks that were judged.
        why: The reason, as a sentence without its stop.
    """

    names: tuple[str, ...]
    error: float
    error_without: float
    num_judged: int
    why: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values of JSON, in which an infinite error is None, and NaN is text; `from_dict` restores it."""
        values = {key: None if value == math.inf else value for key, value in asdict(self).items()}
        errors = {key: "nan" for key in ("error", "error_without") if math.isnan(getattr(self, key))}
        return {**values, **errors, "names": list(self.names)}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> BlockChoice:
        """Restore what `to_dict` returned."""
        errors = {key: math.inf if values[key] is None else float(values[key]) for key in ("error", "error_without")}
        return BlockChoice(**{**values, **errors, "names": tuple(values["names"])})


def choose_for_budget(errors: Sequence[BlockError], resource: str, judge: Judge) -> BlockChoice:
    """Return the blocks that pay for a budget.

    Args:
        errors: The model's blocks with their errors and savings, of `measure_blocks`.
        resource: The resource that the budget limits; for latency, blocks must have been timed.
        judge: Judges blocks by name, in execution order.
    """
    search = _Search(errors, resource, judge)
    search.run()
    return search.result()


def with_choice(result: PruneResult, choice: BlockChoice | None) -> PruneResult:
    """Return a result whose plan tells how its blocks were chosen, if they were."""
    if choice is None:
        return result
    plan = result.plan
    return replace(result, plan=replace(plan, achieved={**plan.achieved, "blocks": choice.to_dict()}))


class _Search:
    """One greedy search; see the module."""

    def __init__(self, errors: Sequence[BlockError], resource: str, judge: Judge) -> None:
        self._resource = resource
        self._judge = judge
        self._errors = errors
        self._cheapest = sorted((block for block in errors if block.saving(resource) > 0), key=self._price)
        self._taken: list[BlockError] = []
        self._num_judged = 0
        self._without = self._best = self._judged([])
        self._refused: tuple[BlockError, float] | None = None

    def run(self) -> None:
        """Take blocks for as long as they pay; any, for as long as the budget cannot be met, or outputs not finite."""
        while self._take_next():
            pass

    def _take_next(self) -> bool:
        """Take the next block that pays, and return whether there is one."""
        self._refused = None
        for block in self._candidates()[:MOST_TRIED]:
            error = self._judged([*self._taken, block])
            if error < self._best or not math.isfinite(self._best):
                self._taken.append(block)
                self._best = error
                return True
            self._refused = self._refused or (block, error)
        return False

    def result(self) -> BlockChoice:
        """Return the blocks that were taken; none where no set of blocks has an error that is a number."""
        if not math.isfinite(self._best):
            self._taken, self._best = [], self._without
        return BlockChoice(
            names=self._names(self._taken),
            error=self._best,
            error_without=self._without,
            num_judged=self._num_judged,
            why=self._why(),
        )

    def _price(self, block: BlockError) -> tuple[float, float]:
        return block.least_error / block.saving(self._resource), -block.saving(self._resource)

    def _judged(self, blocks: Sequence[BlockError]) -> float:
        self._num_judged += 1
        return float(self._judge(self._names(blocks)))

    def _names(self, blocks: Sequence[BlockError]) -> tuple[str, ...]:
        return tuple(block.name for block in self._errors if block in blocks)

    def _candidates(self) -> list[BlockError]:
        return [
            block
            for block in self._cheapest
            if (block.least_error < self._best or math.isnan(self._best))
            and not any(nested(block, other) for other in self._taken)
        ]

    def _why(self) -> str:
        everything = f"{self._without:.3g}" if math.isfinite(self._without) else _trouble(self._without)
        if self._taken:
            names = ", ".join(self._names(self._taken))
            return (
                f"without {names} the budget takes the outputs {self._best:.3g} nats from the dense model's on images "
                f"held back; with all blocks {everything}"
            )
        if not self._cheapest:
            return "no residual block of the model saves anything that the budget limits"
        if self._refused is not None:
            block, error = self._refused
            taken = f"the budget takes the outputs {error:.3g} nats from the dense model's on images held back"
            found = taken if math.isfinite(error) else _trouble(error)
            return f"no block pays: without {block.name} {found}, and with all blocks {everything}"
        if not math.isfinite(self._without):
            return f"{everything}, whatever blocks are removed"
        block = self._cheapest[0]
        return (
            f"no block pays: {block.name}, the cheapest for what it saves, alone takes the outputs "
            f"{block.least_error:.3g} nats from the dense model's, and the whole budget spent on narrower layers "
            f"{everything}"
        )


def _trouble(error: float) -> str:
    """Return what an error that is not finite says."""
    return "the budget cannot be met" if math.isinf(error) else "the outputs are not finite numbers"
