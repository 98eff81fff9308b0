"""Whole blocks: a residual branch is replaced by its mean over calibration images.

A block that is removed becomes its shortcut, and so saves all of its time, where narrower layers save a part of it. It
happens in three steps:

1. `plan_blocks` finds the branches that can be removed (`cleanai_ray.graph.blocks`) and takes the mean of what each
   gives, for each channel, over all samples and positions of the dense model. Means of the dense model, and not of the
   model without the blocks before: a sum of the stream then keeps the mean it had.
2. `without_blocks` removes them from a copy, and folds the means into biases where it can (`cleanai_ray.graph.block`).
3. What is left is narrowed as any model is, and repaired against the dense model. The plan holds the blocks with their
   means, so that applied to the dense model it gives the same model again.

A group of layers that a removed block was part of is named by the layers that are left.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.errors import CalibrationError, PruningError
from cleanai_ray.graph.block import Block, branch_output, remove_blocks
from cleanai_ray.graph.blocks import find_blocks
from cleanai_ray.graph.tracing import names_matching, single_input
from cleanai_ray.nn.complexity import Complexity, measure_complexity
from cleanai_ray.nn.copying import copied
from cleanai_ray.nn.modes import evaluation_mode
from cleanai_ray.nn.open_attention import open_attention
from cleanai_ray.pruning.plan import BlockPlan
from cleanai_ray.statistics.batch_forms import Batches

Batch = Tensor | tuple[Tensor, Any]


def plan_blocks(
    model: nn.Module, example_inputs: Any, batches: Iterable[Batch] | None, names: Sequence[str]
) -> tuple[BlockPlan, ...]:
    """Return the plans of blocks to remove, in execution order.

    Args:
        model: The dense model; it is left as it is.
        example_inputs: One input batch, or a tuple that holds just it, on the model's device.
        batches: Calibration inputs [N, ...] or (inputs, targets).
        names: Names of blocks, as `find_blocks` gives them.

    Raises:
        PruningError: When a name is not that of a removable block, or a block is within another.
        CalibrationError: When there are no images, or a branch's mean over them is not finite.
    """
    if batches is None:
        raise PruningError("remove_blocks needs the mean of each branch over calibration images; pass batches")
    chosen = chosen_blocks(find_blocks(model, example_inputs), names)
    return describe_blocks(model, example_inputs, batches, chosen)


def chosen_blocks(blocks: Sequence[Block], names: Sequence[str], key: str = "remove_blocks") -> list[Block]:
    """Return those of a model's blocks that are named, in execution order.

    Args:
        blocks: The blocks, of `find_blocks`.
        names: Names of some of them.
        key: The argument or key that gave the names, for messages.

    Raises:
        PruningError: When a name is not that of a removable block, or a block is within another.
    """
    found = {block.name: block for block in blocks}
    for name in names:
        if name not in found:
            raise PruningError(_unknown(key, name, list(found)))
    chosen = [block for block in found.values() if block.name in names]
    for block in chosen:
        outer = next((other for other in chosen if other is not block and overlap(other, block)), None)
        if outer is not None:
            raise PruningError(f"{key} names '{block.name}' and '{outer.name}', one of which holds the other")
    return chosen


def describe_blocks(
    model: nn.Module, example_inputs: Any, batches: Iterable[Batch], blocks: Sequence[Block]
) -> tuple[BlockPlan, ...]:
    """Return the plans of single blocks, some of which may hold others; arguments and errors as for `plan_blocks`."""
    means = branch_means(model, blocks, batches)
    cost = measure_complexity(open_attention(model), single_input(example_inputs))
    return tuple(_plan(block, means[block.name], cost) for block in blocks)


def _unknown(key: str, name: str, allowed: Sequence[str]) -> str:
    if not allowed:
        return f"{key} names '{name}', but the model has no residual branch that can be removed"
    near = difflib.get_close_matches(name, allowed, n=1)
    guess = f"; did you mean '{near[0]}'?" if near else ""
    return f"{key} names '{name}', which is no residual branch that can be removed{guess} Allowed: {', '.join(allowed)}"


def overlap(one: Block, other: Block) -> bool:
    """Return whether a block holds a module that another one removes."""
    return any(one.holds(module) for module in other.modules)


def _plan(block: Block, mean: Tensor, cost: Complexity) -> BlockPlan:
    gone = [layer for layer in cost.layers if block.holds(layer.name)]
    return BlockPlan(block=block, mean=tuple(mean.tolist()), macs=sum(layer.macs for layer in gone))


def branch_means(model: nn.Module, blocks: Sequence[Block], batches: Iterable[Batch]) -> dict[str, Tensor]:
    """Return the mean of what each branch gives, over samples and positions, by block: [C], float32, on the CPU.

    Args:
        model: The dense model; it is left as it is.
        blocks: The blocks.
        batches: Calibration inputs [N, ...] or (inputs, targets).

    Raises:
        CalibrationError: When there are no images, or a mean is not finite.
    """
    network = open_attention(model)
    device = next((value.device for value in network.parameters()), torch.device("cpu"))
    sums = {block.name: _Sum() for block in blocks}
    with torch.no_grad(), evaluation_mode(network), ExitStack() as undo:
        for block in blocks:
            undo.enter_context(branch_output(network, block, sums[block.name].adding(len(block.shape))))
        for batch in Batches(batches):
            images = batch if isinstance(batch, Tensor) else batch[0]
            if len(images):
                network(images.to(device))
    for name, found in sums.items():
        if not found.count:
            raise CalibrationError("remove_blocks reads calibration images, and the batches given hold none")
        if not torch.isfinite(found.total).all():
            raise CalibrationError(f"the mean of what block '{name}' gives over the calibration images is not finite")
    return {name: (found.total / found.count).float().cpu() for name, found in sums.items()}


@dataclass
class _Sum:
    """The sum of a branch's output for each channel, and the number of values in it."""

    total: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    count: int = 0

    def adding(self, num_dims: int) -> Any:
        """Return a function that adds an output whose channels are `num_dims` dimensions before its end."""

        def add(output: Tensor) -> None:
            axis = output.dim() - num_dims
            values = output.detach().sum(dim=[dim for dim in range(output.dim()) if dim != axis], dtype=torch.float64)
            self.total = self.total.to(values.device) + values
            self.count += output.numel() // output.shape[axis]

        return add


def without_blocks(model: nn.Module, plans: Sequence[BlockPlan]) -> nn.Module:
    """Return a copy of a model, its attention in separate layers, without some blocks; without any, a view of it.

    Args:
        model: The dense model; it is left as it is.
        plans: The blocks in execution order.

    Raises:
        PruningError: When the model has not got a block's modules.
    """
    opened = open_attention(model)
    if not plans:
        return opened
    known = {name for name, _ in opened.named_modules()}
    for plan in plans:
        for name in plan.block.modules:
            if name not in known:
                raise PruningError(f"the plan removes block '{plan.name}', but the model has no module '{name}'")
    smaller = copied(opened)
    remove_blocks(smaller, [(plan.block, torch.tensor(plan.mean)) for plan in plans])
    return smaller


def left_of(model: nn.Module, names: Sequence[str], plans: Sequence[BlockPlan]) -> tuple[str, ...]:
    """Return those of some ignored layers that no block takes with it.

    Patterns become the names that they match in the dense model, some of which may go; without blocks, they stay.

    Args:
        model: The dense model.
        names: Module names, or patterns of them with * and ?.
        plans: The blocks.

    Raises:
        PruningError: When the dense model has no module of a name, or that a pattern matches.
    """
    if not plans:
        return tuple(names)
    found = names_matching(open_attention(model), names)
    return tuple(name for name in found if not any(plan.block.holds(name) for plan in plans))
