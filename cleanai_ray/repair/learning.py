"""Training of a repaired model, or of a block of it, on what the dense model makes of the same images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cleanai_ray.data.augment import sample_seeds, without_labels

_WARM_UP = 0.1
_MOMENTUM = 0.9
_LARGEST_GRADIENT = 1.0
_NOTHING = 1e-9
_CHECKS = 8
"""Times that the loss on held-back images is looked at in the course of a training."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How repair trains.

    Attributes:
        steps: Most steps.
        learning_rate: Peak of the one-cycle schedule.
        batch_size: Images per step.
        seconds: Most seconds; when they are over, training ends with the best weights so far. None: no limit.
        mirror: True if images may be mirrored left to right.
        seed: Seed of the order and of the augmentation.
    """

    steps: int
    learning_rate: float
    batch_size: int = 64
    seconds: float | None = None
    mirror: bool = True
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Learned:
    """The outcome of a training.

    Attributes:
        before: Loss on the held-back images at the start.
        after: The least one that was seen, whose weights the model has now; never above `before`.
        steps: Steps that were made.
        seconds: Time that they took.
    """

    before: float
    after: float
    steps: int
    seconds: float


def learn(
    modules: Sequence[nn.Module],
    recipe: Recipe,
    loss: Callable[[int], Tensor],
    held_back: Callable[[], float],
) -> Learned:
    """Train the own parameters of some modules, which end with the weights that were best on held-back images.

    SGD with Nesterov momentum; the learning rate rises over a tenth of the steps and falls to zero as a cosine
    (one-cycle). The loss on the held-back images is looked at at the start and in equal distances; where training only
    makes it worse, nothing changes.

    Args:
        modules: Modules to train, without those within them. Their buffers are kept and restored with their weights.
        recipe: Steps, learning rate and time.
        loss: Returns the loss of a step, given its number.
        held_back: Returns the loss on the held-back images.
    """
    parameters = list(dict.fromkeys(value for module in modules for value in module.parameters(recurse=False)))
    pace = _Pace(recipe)
    best = _Best(modules, held_back)
    done = 0
    if parameters and recipe.steps and best.before > _NOTHING:
        optimizer = torch.optim.SGD(parameters, lr=recipe.learning_rate, momentum=_MOMENTUM, nesterov=True)
        with _trainable(parameters):
            while not (done and pace.is_over(done)):
                for group in optimizer.param_groups:
                    group["lr"] = pace.learning_rate(done)
                with torch.enable_grad():
                    gradients = torch.autograd.grad(loss(done), parameters, allow_unused=True)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                nn.utils.clip_grad_norm_(parameters, _LARGEST_GRADIENT)
                optimizer.step()
                done += 1
                if pace.is_time_to_look(done):
                    best.look()
        best.restore()
    return Learned(before=best.before, after=best.loss, steps=done, seconds=pace.elapsed)


class _Pace:
    """The course of the learning rate, over the steps or, where that ends sooner, over the time."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._started = time.monotonic()
        self._looked = 0

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._started

    def _progress(self, step: int) -> float:
        seconds = self._recipe.seconds
        return max(step / self._recipe.steps, self.elapsed / seconds if seconds else 0.0)

    def is_over(self, step: int) -> bool:
        return self._progress(step) >= 1

    def is_time_to_look(self, step: int) -> bool:
        """Return True once in each of `_CHECKS` equal parts of the course, and at its end."""
        part = int(min(self._progress(step), 1.0) * _CHECKS)
        is_new, self._looked = part > self._looked, part
        return is_new

    def learning_rate(self, step: int) -> float:
        done = min(self._progress(step), 1.0)
        if done < _WARM_UP:
            return self._recipe.learning_rate * (0.1 + 0.9 * done / _WARM_UP)
        return self._recipe.learning_rate * (1 + math.cos(math.pi * (done - _WARM_UP) / (1 - _WARM_UP))) / 2


class _Best:
    """The weights and buffers that were best on the held-back images, from the start on."""

    def __init__(self, modules: Sequence[nn.Module], held_back: Callable[[], float]) -> None:
        self._modules = modules
        self._held_back = held_back
        self.before = self.loss = self._measure()
        self._kept = self._state()

    def _measure(self) -> float:
        loss = self._held_back()
        return loss if math.isfinite(loss) else math.inf

    def _tensors(self) -> Iterator[Tensor]:
        for module in self._modules:
            yield from module.parameters(recurse=False)
            yield from module.buffers(recurse=False)

    def _state(self) -> list[Tensor]:
        return [value.detach().clone() for value in self._tensors()]

    def look(self) -> None:
        loss = self._measure()
        if loss < self.loss:
            self.loss, self._kept = loss, self._state()

    @torch.no_grad()
    def restore(self) -> None:
        for value, kept in zip(self._tensors(), self._kept, strict=True):
            value.copy_(kept)


@contextmanager
def _trainable(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let parameters be trained, and leave their gradients and flags as they were."""
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.grad = None
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, flag, gradient in before:
            parameter.requires_grad_(flag)
            parameter.grad = gradient


class ImageStream:
    """Batches of calibration images, mirrored, shifted and mixed at random; the same for the same seed and step.

    Args:
        images: The images on the CPU, [N, ...].
        recipe: Batch size, mirroring and seed.

    Attributes:
        batch_size: Images per batch; those of the recipe, or all where there are fewer.
    """

    def __init__(self, images: Tensor, recipe: Recipe) -> None:
        self._images = images
        self._recipe = recipe
        self.batch_size = min(recipe.batch_size, len(images))
        self._per_epoch = len(images) // self.batch_size

    def batch(self, step: int) -> Tensor:
        """Return the batch of a step."""
        epoch, place = divmod(step, self._per_epoch)
        seed = self._recipe.seed
        order = np.random.default_rng([seed, epoch]).permutation(len(self._images))
        chosen = order[place * self.batch_size : (place + 1) * self.batch_size]
        seeds = sample_seeds(seed + epoch, chosen)
        return without_labels(self._images[torch.from_numpy(chosen)], seeds, mirror=self._recipe.mirror)
