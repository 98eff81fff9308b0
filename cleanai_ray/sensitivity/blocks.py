"""The price of whole blocks: what removing each one does to a model's output, and what it saves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cleanai_ray.errors import PruningError
from cleanai_ray.graph.blocks import find_blocks
from cleanai_ray.graph.tracing import single_input
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.pruning.block_removal import chosen_blocks, describe_blocks, overlap, without_blocks
from cleanai_ray.pruning.blocks_only import remove_only
from cleanai_ray.pruning.plan import BlockPlan
from cleanai_ray.repair import RepairOptions
from cleanai_ray.repair import repair as repair_model
from cleanai_ray.repair.auto import split_images
from cleanai_ray.repair.images import Batch, read_images
from cleanai_ray.repair.outputs import divergence, log_probabilities
from cleanai_ray.sensitivity.profile import probe_images
from cleanai_ray.tasks.base import Task, find_task

CHEAP_REPAIR = RepairOptions(compensation="sequential", batch_norm="relative")
"""The repair after which a block is priced by default."""

REPAIR_IMAGES = 256
"""The most images that such a repair reads."""

_TINY = 1e-12


def cheap_repair(compensation: Any, batch_norm: Any) -> RepairOptions | None:
    """Return the repair to price blocks after where a model is repaired with some compensation and recalibration.

    None where it is repaired with neither.
    """
    if compensation != "none":
        return CHEAP_REPAIR
    return None if batch_norm == "none" else RepairOptions(compensation="none", batch_norm="relative")


@dataclass(frozen=True, kw_only=True)
class BlockError:
    """What the removal of one block costs.

    Attributes:
        plan: The block, the mean of its branch and its multiply-accumulates.
        error: Mean KL(dense || model without the block) over the probe images, in nats, before any repair.
        macs: Multiply-accumulates of its layers, as a fraction of the dense model's.
        error_repaired: The same after a repair of the layers that are left; None where none was tried.
        params: Parameters that go with it, as a fraction of the dense model's.
        time: Time that it saves by itself, as a fraction of the dense model's; None where it was not timed.
    """

    plan: BlockPlan
    error: float
    macs: float
    error_repaired: float | None = None
    params: float = 0.0
    time: float | None = None

    @property
    def name(self) -> str:
        """Name of the block."""
        return self.plan.name

    @property
    def price(self) -> float:
        """Error in nats for all the multiply-accumulates of the dense model, at the rate at which this block saves.

        The error is that after repair where one was tried.
        """
        return self.least_error / max(self.macs, _TINY)

    @property
    def least_error(self) -> float:
        """Its error after repair where one was tried, else before."""
        return self.error if self.error_repaired is None else self.error_repaired

    def saving(self, resource: str) -> float:
        """Return the share of the dense model's cost that goes with it: of the resource that a budget limits."""
        shares = {"macs": self.macs, "latency": self.time or 0.0}
        return shares.get(resource, self.params)


def measure_blocks(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    batches: Iterable[Batch],
    *,
    repair: bool | RepairOptions = False,
    task: str | Task = "classification",
) -> tuple[BlockError, ...]:
    """Return what removing each residual block of a model costs by itself, in execution order. No labels are used.

    A fifth of the images (at most `MAX_PROBE_IMAGES`) measures the error; the rest give the branches' means. Each block
    takes one pass over the probe images. Errors of several blocks do not add up where one makes up for another.

    What a block costs before repair says little about what it costs after: a mean that moves is put right by the
    batch-norms that follow, and a linear branch by the layers that read it. With `repair`, each block is priced after a
    repair of its own on at most `REPAIR_IMAGES` of the images that do not measure, which takes a few passes over them.

    Args:
        model: The dense model; it is left as it is.
        example_inputs: One input batch, or a tuple that holds just it, on the model's device.
        batches: Calibration inputs [N, ...] or (inputs, targets).
        repair: True to price blocks after a sequential refit and recalibration of batch-norms, or other options.
        task: What the model is for: a name of `cleanai_ray.registry.TASKS`, or a task.

    Raises:
        CalibrationError: When there are no images, or a batch cannot be run.
    """
    task = find_task(task)
    network = task.network(model)
    working, held = split_images(read_images(batches))
    plans = describe_blocks(network, example_inputs, working or held, find_blocks(network, example_inputs))
    images = probe_images(held or working)
    reference = log_probabilities(network, images)

    whole = measure_complexity(network, single_input(example_inputs))

    def measure(plan: BlockPlan) -> BlockError:
        bare = without_blocks(network, [plan])
        params = 1.0 - sum(value.numel() for value in bare.parameters()) / whole.params
        error = divergence(reference, log_probabilities(bare, images))
        shares = {"macs": plan.macs / whole.macs, "params": params}
        return BlockError(plan=plan, error=error, error_repaired=after_repair(plan), **shares)

    def after_repair(plan: BlockPlan) -> float | None:
        if repair is False:
            return None
        result = remove_only(network, example_inputs, [plan]).of_task(task)
        outcome = repair_model(model, result, fitted, CHEAP_REPAIR if repair is True else repair, task=task)
        return divergence(reference, log_probabilities(task.network(outcome.model), images))

    fitted = first_images(working or held, REPAIR_IMAGES)
    return tuple(measure(plan) for plan in plans)


def first_images(batches: Sequence[Tensor], number: int) -> list[Tensor]:
    """Return the first images of batches, at most a number of them."""
    found: list[Tensor] = []
    for batch in batches:
        left = number - sum(map(len, found))
        if left > 0:
            found.append(batch[:left])
    return found


def cheapest_blocks(errors: Sequence[BlockError], macs: float) -> list[str]:
    """Return the names of blocks that together save a share of the multiply-accumulates, the lowest price first.

    Args:
        errors: The blocks, of `measure_blocks`.
        macs: The least to save, as a fraction of the dense model's.

    Raises:
        PruningError: When all blocks together save less.
    """
    taken: list[BlockError] = []
    for block in _cheapestfirst_images(errors):
        if sum(other.macs for other in taken) >= macs:
            break
        taken.append(block)
    saved = sum(block.macs for block in taken)
    if saved < macs:
        raise PruningError(f"macs is {macs:g}; allowed: at most {saved:.4g}, which is what all blocks save together")
    return [block.name for block in taken]


def choose_blocks(
    errors: Sequence[BlockError],
    *,
    names: Sequence[str] | None = None,
    macs: float | None = None,
    count: int | None = None,
) -> list[str]:
    """Return the names of blocks to remove, by exactly one of three rules.

    Args:
        errors: The blocks, of `measure_blocks`.
        names: Just these.
        macs: The cheapest that save at least this share of the dense model's multiply-accumulates.
        count: As many as this, the cheapest first.

    Raises:
        PruningError: When a name is not that of a block, one block is within another, or there are too few.
    """
    if names is not None:
        return [block.name for block in chosen_blocks([error.plan.block for error in errors], names)]
    if macs is not None:
        return cheapest_blocks(errors, macs)
    assert count is not None
    taken = _cheapestfirst_images(errors)
    if count > len(taken):
        raise PruningError(f"count is {count}; allowed: at most {len(taken)} blocks, which can go together")
    return [block.name for block in taken[:count]]


def _cheapestfirst_images(errors: Sequence[BlockError]) -> list[BlockError]:
    """Return blocks that can be removed together, the lowest price first; of two nested ones, the cheaper."""
    taken: list[BlockError] = []
    for block in sorted(errors, key=_price):
        if not any(nested(block, other) for other in taken):
            taken.append(block)
    return taken


def _price(block: BlockError) -> tuple[float, float]:
    return block.price, -block.macs


def nested(one: BlockError, other: BlockError) -> bool:
    """Return whether one of two blocks holds the other."""
    return overlap(one.plan.block, other.plan.block) or overlap(other.plan.block, one.plan.block)
