"""Block-wise reconstruction: each block learns to make of the repaired model's tensors what the dense block made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cleanai_ray.data.augment import sample_seeds, without_labels
from cleanai_ray.nn.modes import evaluation_mode
from cleanai_ray.repair.images import device_of
from cleanai_ray.repair.learning import Learned, Recipe, learn
from cleanai_ray.repair.outputs import first_output
from cleanai_ray.repair.pair import ModelPair
from cleanai_ray.repair.track import Feature, Track
from cleanai_ray.repair.unfolded import Refit

_LEAST_VARIANCE = 1e-12
COPIES = 2
"""Augmented copies of each image that blocks learn from, beside the image itself."""


def reconstruct_blocks(
    models: ModelPair,
    images: Sequence[Tensor],
    held: Sequence[Tensor],
    recipe: Recipe,
    *,
    ridge: float | None = None,
    memory_limit: int | None = None,
) -> tuple[Learned, ...]:
    """Repair a pruned model block by block, in place: the unfolded refit of a block, and then training of its weights.

    A block (a residual or transformer block, or a layer with its activation function) is trained to make of what the
    repaired blocks before it give it what the dense block makes of its own input; the loss is the squared error
    relative to the variance. The images are given as they are and in `COPIES` copies, mirrored, shifted and mixed at
    random; those held back decide which weights are kept, so that no block ends worse there than its refit. Blocks
    whose kept channels cannot be told are refitted alone.

    Args:
        models: The dense model and its pruned copy, which is changed.
        images: Images to learn from.
        held: Images that decide which weights are kept.
        recipe: Steps of each block, learning rate and time; the seconds are shared out evenly among the blocks.
        ridge: Regularisation of the refit; None: chosen for each layer.
        memory_limit: Bytes that the activations of a block may take during the refit; None: see
            `compensate_unfolded`.
    """
    size = recipe.batch_size
    plain, decide = (torch.cat(list(batches)).split(size) for batches in (images, held))
    pool = _augmented(torch.cat(plain).cpu(), recipe).split(size)
    refit = Refit.prepare(models, plain, ridge=ridge)
    track = Track(models, [*plain, *decide, *pool])
    deciding = range(len(plain), len(plain) + len(decide))
    if recipe.seconds is not None:
        recipe = replace(recipe, seconds=recipe.seconds / len(track.blocks))
    learned = []
    for number, block in enumerate(track.blocks):
        if number:
            track.advance()
        refit.block(track.first(len(plain)), memory_limit)
        feature = None if block.stop is None else track.feature(block.stop)
        if block.stop is None or feature is not None:
            learned.append(_train(track, feature, deciding, recipe))
    return tuple(learned)


def _train(track: Track, feature: Feature | None, held: range, recipe: Recipe) -> Learned:
    """Train the present block. `held` are the places of the batches that decide; the others are learned from."""
    device = device_of(track.models.pruned)
    with torch.no_grad(), evaluation_mode(track.models.dense):
        targets = [_relevant(track.run_dense(batch.to(device)), feature).to(batch.device) for batch in track.dense]
    kind = torch.promote_types(targets[0].dtype, torch.float32)
    decisive = torch.cat([targets[place].flatten() for place in held]).to(kind)
    variance = decisive.var(correction=0).clamp_min(_LEAST_VARIANCE).to(device)
    learned_from = [place for place in range(len(targets)) if place not in held]

    def error(place: int) -> Tensor:
        made = first_output(track.run_pruned(track.pruned[place].to(device)))
        return (made.to(kind) - targets[place].to(device, kind)).square().mean() / variance

    def loss(step: int) -> Tensor:
        epoch, number = divmod(step, len(learned_from))
        order = np.random.default_rng([recipe.seed, epoch]).permutation(len(learned_from))
        return error(learned_from[order[number]])

    @torch.no_grad()
    def on_held_back() -> float:
        return float(torch.stack([error(place) for place in held]).mean())

    with evaluation_mode(track.models.dense), evaluation_mode(track.models.pruned):
        return learn(_trained(track), recipe, loss, on_held_back)


def _trained(track: Track) -> list[nn.Module]:
    """Return the modules that the present block trains: its layers that run in no other block.

    Modules within a layer that never run by themselves (the out-projection of attention) are part of it.
    """
    others = frozenset().union(*(block.layers for block in track.blocks if block is not track.block))
    found = []
    for name in sorted(track.block.layers - others):
        for inner, module in track.models.pruned.get_submodule(name).named_modules(prefix=name):
            if inner == name or inner not in others | track.block.layers:
                found.append(module)
    return found


def _relevant(made: Any, feature: Feature | None) -> Tensor:
    value = first_output(made).detach()
    return value if feature is None else feature.of_dense(value)


def _augmented(images: Tensor, recipe: Recipe) -> Tensor:
    """Return `COPIES` copies of images on the CPU, [COPIES x N, ...], mirrored, shifted and mixed."""
    positions = np.arange(len(images))
    copies = [
        without_labels(images[order], sample_seeds(recipe.seed + copy, order), mirror=recipe.mirror)
        for copy in range(COPIES)
        for order in [np.random.default_rng([recipe.seed, copy]).permutation(positions)]
    ]
    return torch.cat(copies)
