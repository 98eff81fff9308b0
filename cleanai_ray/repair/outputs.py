"""Outputs of models, and the distance between those of two models, without labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.nn.calls import main_output
from cleanai_ray.nn.modes import evaluation_mode
from cleanai_ray.repair.images import run, walk


def first_output(output: Any) -> Tensor:
    """Return a model's output, or the one of several that counts (see `main_output`)."""
    first = main_output(output)
    assert isinstance(first, Tensor)
    return first


@torch.no_grad()
def log_probabilities(model: nn.Module, images: Sequence[Tensor]) -> Tensor:
    """Return log softmax of a model's (first) output, float64, [N, classes, ...] (dimension 1 holds the classes)."""
    with evaluation_mode(model):
        outputs = [run(model, batch, samples) for samples, batch in walk(images, model)]
    return torch.cat([first_output(output) for output in outputs]).double().log_softmax(dim=1).cpu()


def divergence(reference: Tensor, other: Tensor) -> float:
    """Return the mean over samples of KL(reference || other) in nats; infinite where an output is not finite."""
    if not torch.isfinite(other).all():
        return math.inf
    return max(float(divergences(reference, other).mean()), 0.0)


def divergences(reference: Tensor, other: Tensor) -> Tensor:
    """Return KL(reference || other) of each sample in nats, the mean over its positions, [N].

    All are infinite where an output is not finite.
    """
    if not torch.isfinite(other).all():
        return torch.full((len(other),), math.inf, dtype=torch.float64)
    distances = (reference.exp() * (reference - other)).sum(dim=1)
    return distances.flatten(1).mean(dim=1) if distances.dim() > 1 else distances
