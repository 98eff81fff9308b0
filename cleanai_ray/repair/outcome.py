"""Repair of a pruning result, as one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from cleanai_ray.errors import PruningError
from cleanai_ray.repair.auto import AUTO_BATCH_NORMS, BATCH_NORMS, COMPENSATIONS, RIDGES, Workshop, auto_repair
from cleanai_ray.repair.compensation import narrowed_consumers
from cleanai_ray.repair.images import Batches, read_images
from cleanai_ray.repair.moments import ConsumerMoments
from cleanai_ray.tasks.base import Task, find_task

if TYPE_CHECKING:
    from cleanai_ray.pruning.prune_result import PruneResult


@dataclass(frozen=True, kw_only=True, eq=False)
class RepairOutcome:
    """What repair made of a pruned model.

    Attributes:
        model: The repaired model.
        chosen: Compensation, batch_norm, ridge and kl (None where nothing was compared).
        tried: The same of every variant that was compared, in order.
        skipped: Layers that lost input channels and that no compensation covers.
    """

    model: nn.Module
    chosen: dict[str, Any]
    tried: tuple[dict[str, Any], ...] = ()
    skipped: tuple[str, ...] = ()


def repair(
    dense: nn.Module,
    result: PruneResult,
    batches: Batches,
    *,
    compensation: str = "auto",
    batch_norm: str = "auto",
    ridge: float = 1e-3,
    ridges: Sequence[float] = RIDGES,
    moments: ConsumerMoments | None = None,
    task: str | Task = "classification",
) -> RepairOutcome:
    """Recover what pruning lost, without training and without labels. Neither model given is changed.

    Args:
        dense: The dense model.
        result: What pruning it gave.
        batches: Calibration inputs [N, ...] or (inputs, targets), or a function that opens them; read once and held.
        compensation: `auto`, `none`, `closed_form` or `sequential`.
        batch_norm: `auto`, `none`, `relative` or `reset`; auto tries none and relative.
        ridge: Regularisation of a compensation that was asked for by name, as a share of the mean variance.
        ridges: Regularisations that compensation `auto` tries.
        moments: Moments of the dense model's consumers that were measured before, for the closed form; where something
            is `auto`, without every fifth image, which it judges by. None: from the images.
        task: What the models are for: a name of `cleanai_ray.registry.TASKS`, or a task.

    Raises:
        PruningError: When an option is unknown.
        CalibrationError: When there are no images, or a batch cannot be run.
    """
    _require("compensation", compensation, COMPENSATIONS)
    _require("batch_norm", batch_norm, BATCH_NORMS)
    images = read_images(batches)
    task = find_task(task)
    network, narrowed = task.network(dense), task.network(result.model)
    kept = result.kept_inputs, result.kept_outputs
    compensations = COMPENSATIONS if compensation == "auto" else (compensation,)
    norms = AUTO_BATCH_NORMS if batch_norm == "auto" else (batch_norm,)
    skipped = _skipped(dense, result) if compensation != "none" else ()
    if "auto" not in (compensation, batch_norm):
        shop = Workshop(network, narrowed, *kept, images, moments)
        pair = (compensation, None if compensation == "none" else ridge)
        variant, model = next(shop.make([pair], norms))
        model = task.restored(model)
        return RepairOutcome(model=model, chosen={**vars(variant), "kl": None}, skipped=skipped)
    model, chosen, tried = auto_repair(
        network,
        narrowed,
        *kept,
        images,
        compensations=compensations,
        batch_norms=norms,
        ridges=ridges if compensation == "auto" else (ridge,),
        moments=moments,
    )
    return RepairOutcome(model=task.restored(model), chosen=chosen, tried=tried, skipped=skipped)


def _require(field: str, value: str, allowed: Sequence[str]) -> None:
    if value != "auto" and value not in allowed:
        raise PruningError(f"{field} is '{value}'; allowed: auto, {', '.join(allowed)}")


def _skipped(dense: nn.Module, result: PruneResult) -> tuple[str, ...]:
    covered = narrowed_consumers(dense, result.kept_inputs)
    linear = (nn.Conv2d, nn.Linear, nn.MultiheadAttention)
    lost = (name for name in result.kept_inputs if isinstance(dense.get_submodule(name), linear))
    return tuple(name for name in lost if name not in covered and not _depthwise(dense.get_submodule(name)))


def _depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels
