"""The choice of a repair: variants are tried on some calibration images and judged on others, without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cleanai_ray.nn.batches import fast_batches, fast_layout
from cleanai_ray.nn.consumers import Consumer
from cleanai_ray.nn.copying import copied
from cleanai_ray.repair.attention import balance_queries, narrowed_queries
from cleanai_ray.repair.batch_norm import NormSums, apply_relative, apply_reset, collect_norm_sums
from cleanai_ray.repair.blockwise import reconstruct_blocks
from cleanai_ray.repair.compensation import compensate_closed_form, narrowed_consumers
from cleanai_ray.repair.contest import Contest, Entry
from cleanai_ray.repair.distillation import distill
from cleanai_ray.repair.images import device_of, is_held_back
from cleanai_ray.repair.learning import Recipe
from cleanai_ray.repair.moments import ConsumerMoments, collect_moments
from cleanai_ray.repair.options import RepairOptions
from cleanai_ray.repair.outputs import divergences, log_probabilities
from cleanai_ray.repair.pair import ModelPair
from cleanai_ray.repair.sequential import compensate_sequential
from cleanai_ray.repair.trace import trace_consumers
from cleanai_ray.repair.unfolded import compensate_unfolded

_BLOCK_RATE, _DISTILL_RATE = 0.1, 0.02
_SHARE_OF_BLOCKS = 0.5
"""Share of the seconds that blocks may take where distillation follows."""
_SHARE_COMPARED, _LEAST_COMPARED = 8, 32
"""Recalibrations are compared on every eighth image, and on at least so many."""


@dataclass(frozen=True, eq=False)
class Variants:
    """Repaired copies of a pruned model. What several of them read is measured once.

    Attributes:
        models: The dense model and its pruned copy; neither is changed.
        images: Batches of calibration images to repair with.
        held: Batches of images that are held back.
        options: Steps and seconds of training.
        given: Moments of what the dense model's consumers read, if they were measured before; None: from the images.
    """

    models: ModelPair
    images: Sequence[Tensor]
    held: Sequence[Tensor]
    options: RepairOptions
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

    @cached_property
    def parts(self) -> tuple[Variants, Variants | None]:
        """The same variants with the images that recalibrations are compared on, and with the others, if there are any.

        Batch-norms have settled after few images: an eighth of them, but at least `_LEAST_COMPARED`, is enough to see
        which recalibrations are of no use.
        """
        step = min(_SHARE_COMPARED, sum(len(batch) for batch in self.images) // _LEAST_COMPARED)
        if step < 2:
            return self, None
        size, everything = max(len(batch) for batch in self.images), torch.cat(list(self.images))
        first = torch.arange(len(everything)) % step == 0
        one, other = (replace(self, images=everything[some].split(size)) for some in (first, ~first))
        return one, other

    @cached_property
    def reference(self) -> Tensor:
        """Log probabilities that the dense model gives for the images held back."""
        return log_probabilities(self.models.dense, self.held)

    def distances(self, model: nn.Module) -> Tensor:
        """Return the KL of a model's outputs from the dense model's for each image held back, [N]."""
        return divergences(self.reference, log_probabilities(model, self.held))

    def compensate(self, compensation: str, ridge: float | None) -> nn.Module:
        """Return a compensated copy of the pruned model."""
        models = replace(self.models, pruned=copied(self.models.pruned))
        if compensation == "none":
            return models.pruned
        if narrowed_queries(models.dense, models.kept_inputs):
            models = balance_queries(models, self.moments)
        if compensation == "closed_form":
            assert ridge is not None
            compensate_closed_form(models, self.moments, self.consumers, ridge=ridge)
        elif compensation == "sequential":
            assert ridge is not None
            compensate_sequential(models, self.images, ridge=ridge)
        elif compensation == "unfolded":
            compensate_unfolded(models, self.images, ridge=ridge)
        else:
            recipe = self._recipe(self.options.block_steps, _BLOCK_RATE, _SHARE_OF_BLOCKS)
            reconstruct_blocks(models, self.images, self.held, recipe, ridge=ridge)
        return models.pruned

    def recalibrate(self, model: nn.Module, batch_norm: str) -> nn.Module:
        """Return a copy of a model with recalibrated batch-norms, or the model itself for `none`."""
        if batch_norm == "none":
            return model
        return self.apply(model, batch_norm, self.dense_sums(batch_norm), self.measure(model))

    def dense_sums(self, batch_norm: str) -> dict[str, NormSums]:
        """Return what the dense model's batch-norms read, if a recalibration compares with it."""
        return self.norm_sums if batch_norm == "relative" else {}

    def measure(self, model: nn.Module) -> dict[str, NormSums]:
        """Return sums over what a model's batch-norms read."""
        return collect_norm_sums(model, self.images)

    def apply(
        self, model: nn.Module, batch_norm: str, dense: dict[str, NormSums], found: dict[str, NormSums]
    ) -> nn.Module:
        """Return a copy of a model whose batch-norms are recalibrated by what was measured in both models."""
        model = copied(model)
        if batch_norm == "relative":
            apply_relative(self.models.dense, model, dense, found, self.models.kept_outputs)
        else:
            apply_reset(model, found)
        return model

    def entry(self, compensated: nn.Module, batch_norm: str, record: dict[str, Any]) -> Entry:
        """Return a variant for the contest: a recalibration is finished by the images that `parts` left."""
        if batch_norm == "none":
            return Entry(record=record, model=compensated, distances=self.distances(compensated))
        part, rest = self.parts
        found = part.measure(compensated)

        def finish() -> tuple[nn.Module, Tensor]:
            assert rest is not None
            dense = _merged(part.dense_sums(batch_norm), rest.dense_sums(batch_norm))
            model = self.apply(compensated, batch_norm, dense, _merged(found, rest.measure(compensated)))
            return model, self.distances(model)

        model = self.apply(compensated, batch_norm, part.dense_sums(batch_norm), found)
        distances = self.distances(model)
        return Entry(record=record, model=model, distances=distances, finish=None if rest is None else finish)

    def distill(self, model: nn.Module) -> tuple[float, int]:
        """Distil the dense model into a repaired one, in place; return KL on the images held back, and the steps."""
        recipe = self._recipe(self.options.distill_steps, _DISTILL_RATE, 1 - _SHARE_OF_BLOCKS)
        learned = distill(replace(self.models, pruned=model), self.images, self.held, recipe)
        return learned.after, learned.steps

    def _recipe(self, steps: int, learning_rate: float, share: float) -> Recipe:
        seconds = self.options.seconds
        if seconds is not None and self.options.distill_steps:
            seconds *= share
        mirror, seed = self.options.mirror, self.options.seed
        return Recipe(steps=steps, learning_rate=learning_rate, seconds=seconds, mirror=mirror, seed=seed)


def _merged(one: dict[str, NormSums], other: dict[str, NormSums]) -> dict[str, NormSums]:
    """Return the sums over two sets of images."""
    both = {name: one[name] + other[name] for name in one if name in other}
    return {**one, **other, **both}


def split_images(images: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the images to repair with and those held back, every fifth, in batches of the size given.

    Of fewer than five images, none is held back.
    """
    size = max(len(batch) for batch in images)
    everything = torch.cat(list(images))
    held = torch.from_numpy(is_held_back(np.arange(len(everything))))
    working, judging = (list(everything[some].split(size)) if some.any() else [] for some in (~held, held))
    return working, judging


def auto_repair(
    models: ModelPair, images: Sequence[Tensor], options: RepairOptions, moments: ConsumerMoments | None = None
) -> tuple[nn.Module, dict[str, Any], tuple[dict[str, Any], ...]]:
    """Try variants of repair, keep the one whose outputs are nearest to the dense model's, and distil if asked to.

    A fifth of the images is held back. Each variant repairs with the rest, and is judged on those held back, by the
    mean KL(dense || pruned) of the softmax outputs; no labels are used. If `none` is among the compensations and the
    recalibrations, repair never takes a model farther from the dense one on these images. Nor does distillation.

    A recalibration is judged after an eighth of the images first, and reads the others only where it may yet win. A
    variant that fails costs only itself, and a notice says why.

    Args:
        models: The dense model and its pruned copy; neither is changed.
        images: Batches of calibration images.
        options: Compensations, recalibrations and regularisations to try, each with every other; training.
        moments: Moments of what the dense model's consumers read, on images that are not held back; None: from the
            images.

    Returns:
        The repaired model; the variant that was chosen; all that were tried, in order (compensation, batch_norm, ridge,
        distill_steps, kl; of a recalibration that could not win, after an eighth of the images).
    """
    working, held = split_images(images)
    if not held:
        working = held = list(images)
    layout = fast_layout(models.dense, held[0][:1].to(device_of(models.dense)))
    held = [part for batch in held for part in fast_batches(batch, layout)]
    variants = Variants(models, working, held, options, moments)
    contest = Contest()
    tried: list[dict[str, Any]] = []
    for compensation, ridge in options.variants:
        records = [describe_variant(compensation, batch_norm, ridge) for batch_norm in options.batch_norms]
        tried += records
        with contest.losing(*records):
            compensated = variants.compensate(compensation, ridge)
            for batch_norm, record in zip(options.batch_norms, records, strict=True):
                with contest.losing(record):
                    contest.enter(variants.entry(compensated, batch_norm, record))
    winner = contest.decide()
    model, chosen = winner.model, winner.record
    if options.distill_steps:
        model = copied(model)
        distance, steps = variants.distill(model)
        chosen = {**chosen, "distill_steps": steps, "kl": distance}
        tried.append(chosen)
    return model, chosen, tuple(tried)


def describe_variant(
    compensation: str, batch_norm: str, ridge: float | None, kl: float | None = None
) -> dict[str, Any]:
    """Return the record of a variant that was not distilled."""
    return {"compensation": compensation, "batch_norm": batch_norm, "ridge": ridge, "distill_steps": 0, "kl": kl}
