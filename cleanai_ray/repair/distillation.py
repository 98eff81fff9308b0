"""Distillation end to end, without labels: a repaired model learns the dense model's outputs and inner tensors."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.nn.losses import distillation_loss
from cleanai_ray.nn.modes import HookOwner, evaluation_mode
from cleanai_ray.repair.batch_norm import apply_reset, batch_norms, collect_norm_sums
from cleanai_ray.repair.images import device_of
from cleanai_ray.repair.learning import ImageStream, Learned, Recipe, learn
from cleanai_ray.repair.outputs import divergence, first_output, log_probabilities
from cleanai_ray.repair.pair import ModelPair
from cleanai_ray.repair.track import Feature, Track

TEMPERATURE = 4.0
FEATURE_WEIGHT = 0.1
_MOST_FEATURES = 4


def distill(models: ModelPair, images: Sequence[Tensor], held: Sequence[Tensor], recipe: Recipe) -> Learned:
    """Train a pruned model to reproduce its dense model, in place.

    The loss is T^2 KL(dense || pruned) of the softmax outputs at temperature T = 4 (Hinton et al. 2015), and a tenth
    of the squared error of a few tensors between blocks, each relative to its variance. Batch-norms normalise by the
    batch meanwhile; at the end, their running statistics are those of the images as they are, if that is nearer.

    Args:
        models: The models; the pruned one is changed.
        images: Images to learn from, which are mirrored, shifted and mixed at random.
        held: Images that decide which weights are kept: those with the least KL(dense || pruned) there.
        recipe: Steps, learning rate and time.
    """
    device = device_of(models.pruned)
    track = Track(models, images, memory_limit=sys.maxsize)  # Nothing is kept between blocks.
    features = _spread(track.features)
    stream = ImageStream(torch.cat(list(images)).cpu(), recipe)
    reference = log_probabilities(models.dense, held)
    with ExitStack() as stack:
        for model in (models.dense, models.pruned):
            stack.enter_context(evaluation_mode(model))
        dense = stack.enter_context(_Tap(models.dense, features))
        pruned = stack.enter_context(_Tap(models.pruned, features))

        def loss(step: int) -> Tensor:
            batch = stream.batch(step).to(device)
            with torch.no_grad():
                taught = first_output(models.dense(batch))
            total = distillation_loss(first_output(models.pruned(batch)), taught, TEMPERATURE)
            for feature in features:
                target = feature.of_dense(dense.seen[feature.module])
                error = (pruned.seen[feature.module] - target).square().mean()
                total = total + FEATURE_WEIGHT * error / target.var().clamp_min(1e-12)
            return total

        def distance() -> float:
            return divergence(reference, log_probabilities(models.pruned, held))

        for norm in batch_norms(models.pruned).values():
            norm.train(stream.batch_size > 1)
        learned = learn(list(models.pruned.modules()), recipe, loss, distance)
    return replace(learned, after=_settle(models.pruned, images, distance, learned.after))


def _settle(model: nn.Module, images: Sequence[Tensor], distance: Callable[[], float], before: float) -> float:
    """Give batch-norms the statistics of images, unless that is farther from the dense model; return the distance."""
    norms = batch_norms(model)
    kept = [copy.deepcopy(norm.state_dict()) for norm in norms.values()]
    apply_reset(model, collect_norm_sums(model, images))
    after = distance() if norms else before
    if after < before:
        return after
    for norm, state in zip(norms.values(), kept, strict=True):
        norm.load_state_dict(state)
    return before


class _Tap(HookOwner):
    """Keeps what some modules of a model read.

    Attributes:
        seen: The last input of each module, by name.
    """

    def __init__(self, model: nn.Module, features: Sequence[Feature]) -> None:
        super().__init__()
        self._model = model
        self._names = [feature.module for feature in features]
        self.seen: dict[str, Tensor] = {}

    def __enter__(self) -> _Tap:
        for name in self._names:
            self._handles.append(self._model.get_submodule(name).register_forward_pre_hook(self._keep(name)))
        return self

    def _keep(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.seen[name] = args[0]

        return hook


def _spread(features: Sequence[Feature]) -> list[Feature]:
    """Return a few features in about equal distances, the last one among them."""
    number = min(_MOST_FEATURES, len(features))
    return [features[round((place + 1) * len(features) / number) - 1] for place in range(number)]
