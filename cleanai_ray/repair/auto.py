"""The choice of a repair: variants are tried on some calibration images and judged on others, without labels."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cleanai_ray.config.sections import HELD_BACK
from cleanai_ray.nn.consumers import Consumer
from cleanai_ray.nn.modes import evaluation_mode
from cleanai_ray.repair.attention import balance_queries, narrowed_queries
from cleanai_ray.repair.batch_norm import NormSums, apply_relative, apply_reset, collect_norm_sums
from cleanai_ray.repair.compensation import compensate_closed_form, narrowed_consumers
from cleanai_ray.repair.images import device_of, run, walk
from cleanai_ray.repair.moments import ConsumerMoments, collect_moments
from cleanai_ray.repair.options import RepairOptions
from cleanai_ray.repair.pair import ModelPair
from cleanai_ray.repair.sequential import compensate_sequential
from cleanai_ray.repair.trace import trace_consumers


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to repair.

    Attributes:
        compensation: `none`, `closed_form` or `sequential`.
        batch_norm: `none`, `relative` or `reset`.
        ridge: Regularisation of the compensation; None without a compensation.
    """

    compensation: str
    batch_norm: str
    ridge: float | None


@dataclass(frozen=True, eq=False)
class Variants:
    """Repaired copies of a pruned model. What several of them read is measured once.

    Attributes:
        models: The dense model and its pruned copy; neither is changed.
        images: Batches of calibration images.
        given: Moments of what the dense model's consumers read, if they were measured before; None: from the images.
    """

    models: ModelPair
    images: Sequence[Tensor]
    given: ConsumerMoments | None = None

    @cached_property
    def consumers(self) -> list[Consumer]:
        """The consumers of the pruned model."""
        pruned = self.models.pruned
        return trace_consumers(pruned, self.images[0][:1].to(device_of(pruned)))

    @cached_property
    def moments(self) -> ConsumerMoments:
        """Moments of what the dense model's narrowed consumers read."""
        if self.given is not None:
            return self.given
        dense = self.models.dense
        features = narrowed_consumers(dense, self.models.kept_inputs)
        layers = [*features, *narrowed_queries(dense, self.models.kept_inputs)]
        return collect_moments(dense, self.images, layers=layers, features=features)

    @cached_property
    def norm_sums(self) -> dict[str, NormSums]:
        """Sums over what the dense model's batch-norms read."""
        return collect_norm_sums(self.models.dense, self.images)

    def compensate(self, compensation: str, ridge: float | None) -> nn.Module:
        """Return a compensated copy of the pruned model."""
        copied = replace(self.models, pruned=copy.deepcopy(self.models.pruned))
        if compensation != "none" and narrowed_queries(copied.dense, copied.kept_inputs):
            copied = balance_queries(copied, self.moments)
        if compensation == "closed_form":
            assert ridge is not None
            compensate_closed_form(copied, self.moments, self.consumers, ridge=ridge)
        elif compensation == "sequential":
            assert ridge is not None
            compensate_sequential(copied, self.images, ridge=ridge)
        return copied.pruned

    def recalibrate(self, model: nn.Module, batch_norm: str) -> nn.Module:
        """Return a copy of a model with recalibrated batch-norms, or the model itself for `none`."""
        if batch_norm == "none":
            return model
        model = copy.deepcopy(model)
        found = collect_norm_sums(model, self.images)
        if batch_norm == "relative":
            apply_relative(self.models.dense, model, self.norm_sums, found, self.models.kept_outputs)
        else:
            apply_reset(model, found)
        return model

    def make(self, compensations: Sequence[tuple[str, float | None]], norms: Sequence[str]) -> Iterator[Any]:
        """Yield (variant, model) for every pair; each compensation is made once."""
        for compensation, ridge in compensations:
            compensated = self.compensate(compensation, ridge)
            for batch_norm in norms:
                variant = Variant(compensation=compensation, batch_norm=batch_norm, ridge=ridge)
                yield variant, self.recalibrate(compensated, batch_norm)


def is_held_back(positions: np.ndarray) -> np.ndarray:
    """Return which images are held back to judge by, from their places among those that repair reads: every fifth."""
    return positions % HELD_BACK == HELD_BACK - 1


def split_images(images: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the images to repair with and those held back, every fifth, in batches of the size given."""
    size = max(len(batch) for batch in images)
    everything = torch.cat(list(images))
    held = torch.from_numpy(is_held_back(np.arange(len(everything))))
    return list(everything[~held].split(size)), list(everything[held].split(size))


@torch.no_grad()
def log_probabilities(model: nn.Module, images: Sequence[Tensor]) -> Tensor:
    """Return log softmax of a model's (first) output, float64, [N, classes, ...] (dimension 1 holds the classes)."""
    with evaluation_mode(model):
        outputs = [run(model, batch, samples) for samples, batch in walk(images, model)]
    logits = [output if isinstance(output, Tensor) else output[0] for output in outputs]
    return torch.cat(logits).double().log_softmax(dim=1).cpu()


def divergence(reference: Tensor, other: Tensor) -> float:
    """Return the mean over samples of KL(reference || other) in nats; infinite where an output is not finite."""
    if not torch.isfinite(other).all():
        return math.inf
    return max(float((reference.exp() * (reference - other)).sum(dim=1).mean()), 0.0)


def auto_repair(
    models: ModelPair, images: Sequence[Tensor], options: RepairOptions, moments: ConsumerMoments | None = None
) -> tuple[nn.Module, dict[str, Any], tuple[dict[str, Any], ...]]:
    """Try variants of repair, and keep the one whose outputs are nearest to the dense model's.

    A fifth of the images is held back. Each variant repairs with the rest, and is judged on those held back, by the
    mean KL(dense || pruned) of the softmax outputs; no labels are used. If `none` is among the compensations and the
    recalibrations, repair never takes a model farther from the dense one on these images.

    Args:
        models: The dense model and its pruned copy; neither is changed.
        images: Batches of calibration images.
        options: Compensations, recalibrations and regularisations to try, each with every other.
        moments: Moments of what the dense model's consumers read, on images that are not held back; None: from the
            images.

    Returns:
        The repaired model; the variant that was chosen; all that were tried, in order (compensation, batch_norm, ridge,
        kl).
    """
    working, held = split_images(images)
    if not held:
        working = held = list(images)
    variants = Variants(models, working, moments)
    reference = log_probabilities(models.dense, held)
    pairs = [
        (name, ridge) for name in options.compensations for ridge in (options.ridges if name != "none" else (None,))
    ]
    tried: list[dict[str, Any]] = []
    best: tuple[nn.Module, dict[str, Any]] | None = None
    for variant, model in variants.make(pairs, options.batch_norms):
        entry = {**vars(variant), "kl": divergence(reference, log_probabilities(model, held))}
        tried.append(entry)
        if best is None or entry["kl"] < best[1]["kl"]:
            best = model, entry
    assert best is not None, "there is at least one variant"
    return best[0], best[1], tuple(tried)
