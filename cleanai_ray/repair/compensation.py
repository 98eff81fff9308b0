"""Weight compensation in closed form: the removed inputs of each consumer are folded into those that stay."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from cleanai_ray.errors import PruningError
from cleanai_ray.nn.consumers import (
    Consumer,
    features_per_channel,
    is_consumer,
    kept_rows,
    read_weight,
    shift_output,
    write_weight,
)
from cleanai_ray.repair.images import device_of
from cleanai_ray.repair.moments import ConsumerMoments
from cleanai_ray.repair.pair import Kept, ModelPair


def narrowed_consumers(dense: nn.Module, kept_inputs: Kept) -> dict[str, int]:
    """Return the consumers that lost input channels and can be refitted, with their features per channel."""
    found = {}
    for name in kept_inputs:
        module = dense.get_submodule(name)
        features = features_per_channel(module, kept_inputs[name]) if is_consumer(module) else None
        if features is not None:
            found[name] = features
    return found


def solve_ridge(cross: Tensor, covariance: Tensor, ridge: float, target: Tensor | None = None) -> Tensor:
    """Return (cross + l target) (covariance + l I)^-1 with l = ridge x mean diagonal of the covariance.

    Args:
        cross: Covariance of the predicted values with the predictors, [C, K].
        covariance: Covariance of the predictors, [K, K].
        ridge: Regularisation, as a share of the mean variance; 0: least squares, of minimum norm for standardised
            predictors, so that one of them much larger than the others does not make the rest count as zero.
        target: Matrix that the solution shrinks to, [C, K]; zero by default.

    Raises:
        PruningError: When ridge is negative.
    """
    if ridge < 0:
        raise PruningError(f"ridge is {ridge:g}; allowed: at least 0")
    variance = covariance.diagonal().clamp_min(0)
    level = ridge * variance.mean()
    if target is not None:
        cross = cross + level * target
    if level > 0:
        regular = covariance + level * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
        return torch.linalg.solve(regular, cross.T).T
    deviation = variance.sqrt().masked_fill(variance == 0, 1)
    correlation = covariance / torch.outer(deviation, deviation)
    return (cross / deviation) @ torch.linalg.pinv(correlation, hermitian=True) / deviation


def compensate_closed_form(
    models: ModelPair, moments: ConsumerMoments, consumers: list[Consumer], *, ridge: float = 1e-3
) -> tuple[str, ...]:
    """Fold the removed inputs R of each narrowed consumer into the kept ones K, in place, and return their names.

    A = S[R, K] (S[K, K] + ridge mean(diag S[K, K]) I)^-1; W[:, K] += W[:, R] A, the same A for every kernel position;
    the output is shifted by W[:, R] (mu[R] - A mu[K]).

    Args:
        models: The dense model and its pruned copy, which is changed.
        moments: Moments of what the dense model's narrowed consumers read, from `collect_moments`.
        consumers: The pruned model's consumers, from `trace_consumers`.
        ridge: Regularisation, as a share of the mean variance of the kept inputs.
    """
    narrowed = narrowed_consumers(models.dense, models.kept_inputs)
    device = device_of(models.pruned)
    changed = []
    for consumer in consumers:
        name = consumer.name
        if name not in narrowed or name not in moments:
            continue
        module = models.dense.get_submodule(name)
        covariance, mean = moments[name].covariance.to(device), moments[name].mean.to(device)
        features = module.in_features // len(mean) if isinstance(module, nn.Linear) else 1
        kept = channels_of(models.kept_inputs[name], features)
        removed = torch.as_tensor(np.setdiff1d(np.arange(len(mean)), kept.numpy()))
        mapping = solve_ridge(covariance[removed][:, kept], covariance[kept][:, kept], ridge)
        lost = read_weight(module, features)[kept_rows(module, models.kept_outputs.get(name))][:, removed]
        lost = lost.to(device)
        target = models.pruned.get_submodule(name)
        write_weight(target, read_weight(target, features).to(device) + torch.einsum("orp,rk->okp", lost, mapping))
        shift_output(models.pruned, consumer, lost.sum(dim=2) @ (mean[removed] - mapping @ mean[kept]))
        changed.append(name)
    return tuple(changed)


def channels_of(kept: np.ndarray, features: int) -> Tensor:
    """Return the channels that kept features belong to."""
    return torch.as_tensor(kept[::features] // features)
