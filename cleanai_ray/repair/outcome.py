"""Repair of a pruned model in one call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from cleanai_ray.config.sections import HELD_BACK
from cleanai_ray.nn.patches import matrix, reads_patches
from cleanai_ray.repair.auto import Variants, auto_repair, describe_variant
from cleanai_ray.repair.compensation import narrowed_consumers
from cleanai_ray.repair.images import Batches, device_of, read_images
from cleanai_ray.repair.moments import ConsumerMoments
from cleanai_ray.repair.options import RepairOptions
from cleanai_ray.repair.pair import ModelPair
from cleanai_ray.repair.trace import sharing_layers, trace_consumers
from cleanai_ray.repair.unfolded import MAX_FEATURES
from cleanai_ray.tasks.base import Task, find_task

_LINEAR = (_ConvNd, nn.Linear, nn.MultiheadAttention)

if TYPE_CHECKING:
    from cleanai_ray.pruning.prune_result import PruneResult


@dataclass(frozen=True, kw_only=True, eq=False)
class RepairOutcome:
    """The result of repair.

    Attributes:
        model: The repaired model.
        chosen: Compensation, batch_norm, ridge, distill_steps (that were made) and kl (None if nothing was compared).
        tried: The same for every variant that was compared, in order.
        skipped: Layers that lost input channels but that the chosen compensation does not cover.
        notes: Sentences about what repair had to do otherwise than usual.
    """

    model: nn.Module
    chosen: dict[str, Any]
    tried: tuple[dict[str, Any], ...] = ()
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def repair(
    dense: nn.Module,
    result: PruneResult,
    batches: Batches,
    options: RepairOptions | None = None,
    *,
    moments: ConsumerMoments | None = None,
    task: str | Task = "classification",
) -> RepairOutcome:
    """Recover what pruning lost, without training and without labels. Neither of the given models is changed.

    Args:
        dense: The dense model.
        result: The result of pruning it.
        batches: Calibration inputs [N, ...] or (inputs, targets), or a function that opens them; they are read once
            and held in memory.
        options: How to repair; by default everything is chosen automatically.
        moments: Moments of what the dense model's consumers read, for the closed form, if they were measured before. If
            an option is `auto`, they must leave out every fifth image, which judges. None: from the batches.
        task: What the models are for: a name of `cleanai_ray.registry.TASKS`, or a task.

    Raises:
        PruningError: When an option is unknown.
        CalibrationError: When there are no images, or a batch cannot be run.
    """
    options = options or RepairOptions()
    images = read_images(batches)
    task = find_task(task)
    models = ModelPair(
        dense=task.network(dense),
        pruned=task.network(result.model),
        kept_inputs=result.kept_inputs,
        kept_outputs=result.kept_outputs,
    )
    if options.holds_back:
        model, chosen, tried = auto_repair(models, images, options, moments)
    else:
        variants = Variants(models, images, (), options, moments)
        ((compensation, ridge),) = options.variants
        model = variants.recalibrate(variants.compensate(compensation, ridge), options.batch_norm)
        chosen, tried = describe_variant(compensation, options.batch_norm, ridge), ()
    skipped = _skipped(models, chosen["compensation"], images[0][:1])
    notes = _notes(models, chosen["compensation"])
    number = sum(len(batch) for batch in images)
    if options.holds_back and number < HELD_BACK:
        few = "1 calibration image is" if number == 1 else f"{number} calibration images are"
        notes += (f"{few} too few to hold any back: variants are judged on what they repair with",)
    return RepairOutcome(model=task.restored(model), chosen=chosen, tried=tried, skipped=skipped, notes=notes)


def _skipped(models: ModelPair, compensation: str, image: Tensor) -> tuple[str, ...]:
    """Return the layers that lost input channels, and that a compensation left as they are."""
    if compensation == "none":
        return ()
    modules = {name: models.dense.get_submodule(name) for name in models.kept_inputs}
    lost = [name for name, module in modules.items() if isinstance(module, _LINEAR)]
    found = trace_consumers(models.pruned, image.to(device_of(models.pruned)), reads_patches)
    fixed = {consumer.name for consumer in found if not consumer.reads_samples and compensation != "closed_form"}
    fixed |= sharing_layers(models.pruned)
    if compensation in ("unfolded", "blockwise"):
        return tuple(name for name in lost if name in fixed or not reads_patches(modules[name]))
    covered = narrowed_consumers(models.dense, models.kept_inputs)
    return tuple(name for name in lost if name in fixed or (name not in covered and not _depthwise(modules[name])))


def _notes(models: ModelPair, compensation: str) -> tuple[str, ...]:
    if compensation not in ("unfolded", "blockwise"):
        return ()
    layers = {name: module for name, module in models.pruned.named_modules() if reads_patches(module)}
    parts = {name: -(-matrix(module).shape[2] // MAX_FEATURES) for name, module in layers.items()}
    return tuple(
        f"layer '{name}' is refitted in {number} parts, since it reads more than {MAX_FEATURES} values at once"
        for name, number in parts.items()
        if number > 1
    )


def _depthwise(module: nn.Module) -> bool:
    return isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels
