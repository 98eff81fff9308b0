"""Weight compensation in execution order: each consumer is refitted to the output of the repaired layers before it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cleanai_ray.nn.activation_size import largest_activation
from cleanai_ray.nn.consumers import (
    Consumer,
    features_per_channel,
    is_consumer,
    kept_rows,
    observing,
    read_weight,
    shift_output,
    write_weight,
)
from cleanai_ray.nn.modes import evaluation_mode
from cleanai_ray.repair.compensation import channels_of, solve_ridge
from cleanai_ray.repair.images import Batches, Reached, device_of, read_images, run, walk
from cleanai_ray.repair.moments import CrossMoments
from cleanai_ray.repair.pair import ModelPair
from cleanai_ray.repair.sampling import POSITIONS_PER_SAMPLE, PositionSampler
from cleanai_ray.repair.trace import trace_consumers

MEMORY_LIMIT = 4 * 1024**3
_LIVE_TENSORS = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class _Refit:
    """Everything that refitting one model needs."""

    models: ModelPair
    consumers: dict[str, Consumer]
    features: dict[str, int]
    sampler: PositionSampler
    ridge: float

    def refit(self, name: str, moments: CrossMoments) -> None:
        """A = (C_xz + l E) (C_zz + l I)^-1; W' = W A; the output is shifted by W (mu_x - A mu_z)."""
        models = self.models
        cross, covariance = moments.covariances
        chosen = torch.eye(len(cross), dtype=cross.dtype)
        if name in models.kept_inputs:
            chosen = chosen[:, channels_of(models.kept_inputs[name], self.features[name])]
        mapping = solve_ridge(cross, covariance, self.ridge, chosen)
        module = models.dense.get_submodule(name)
        weight = read_weight(module, self.features[name])[kept_rows(module, models.kept_outputs.get(name))]
        write_weight(models.pruned.get_submodule(name), torch.einsum("ocp,ck->okp", weight, mapping))
        mean_x, mean_z = moments.means
        shift_output(models.pruned, self.consumers[name], weight.sum(dim=2) @ (mean_x - mapping @ mean_z))


@torch.no_grad()
def compensate_sequential(
    models: ModelPair,
    batches: Batches,
    *,
    ridge: float = 1e-3,
    positions_per_sample: int = POSITIONS_PER_SAMPLE,
    memory_limit: int = MEMORY_LIMIT,
) -> tuple[str, ...]:
    """Refit the consumers of a pruned model in execution order, in place, and return the names of those that changed.

    Each is refitted so that, from the input z that the pruned and already refitted model gives it, it computes what
    the dense model computes from its input x. Three kinds of consumers stay as they are: those that read exactly what
    the dense model's read, those that run several times in a forward pass, and those that read a flattened map whose
    channels are unknown.

    With all images in one batch this takes one pass of each model: a consumer is refitted when the pass reaches it. If
    that would need more memory than `memory_limit`, each model runs up to each consumer, batch by batch, which costs
    about half as many whole passes as there are consumers (26 for ResNet-50).

    Args:
        models: The dense model and its pruned copy, which is changed.
        batches: Calibration images, or a function that opens them; they are read once and held in memory.
        ridge: Regularisation, as a share of the mean variance of the inputs.
        positions_per_sample: Most positions (pixels, tokens) to read per sample.
        memory_limit: Bytes that activations may take.

    Raises:
        CalibrationError: When a batch cannot be run.
    """
    images = read_images(batches)
    first = images[0][:1].to(device_of(models.pruned))
    plan = _plan(models, first, ridge, positions_per_sample)
    number = sum(len(batch) for batch in images)
    with evaluation_mode(models.dense), evaluation_mode(models.pruned):
        small = number * _bytes_per_sample(plan, first) <= memory_limit
        return _in_one_pass(plan, images) if small else _consumer_by_consumer(plan, images)


def _plan(models: ModelPair, first: Tensor, ridge: float, positions_per_sample: int) -> _Refit:
    consumers, features = {}, {}
    for consumer in trace_consumers(models.pruned, first):
        module = models.dense.get_submodule(consumer.name)
        size = features_per_channel(module, models.kept_inputs.get(consumer.name)) if is_consumer(module) else None
        if size is not None and consumer.num_calls == 1:
            consumers[consumer.name], features[consumer.name] = consumer, size
    return _Refit(
        models=models,
        consumers=consumers,
        features=features,
        sampler=PositionSampler(positions_per_sample, features),
        ridge=ridge,
    )


def _bytes_per_sample(plan: _Refit, first: Tensor) -> int:
    """Return the bytes that one image takes: a few of the largest activations, and the dense model's sampled inputs."""
    kept = 0

    def before(name: str, module: nn.Module, value: Tensor) -> None:
        nonlocal kept
        rows = plan.sampler.rows(name, module, value, range(1))
        kept += rows.numel() * rows.element_size()

    with observing(plan.models.dense, list(plan.consumers), before):
        largest = largest_activation(plan.models.dense, lambda: plan.models.dense(first))
    return _LIVE_TENSORS * largest + kept


def _in_one_pass(plan: _Refit, images: Sequence[Tensor]) -> tuple[str, ...]:
    names = list(plan.consumers)
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    samples = range(0)
    changed = []

    def keep(name: str, module: nn.Module, value: Tensor) -> None:
        seen[name].append(plan.sampler.rows(name, module, value, samples))

    def refit(name: str, module: nn.Module, value: Tensor) -> None:
        x, z = torch.cat(seen.pop(name)), plan.sampler.rows(name, module, value, samples)
        if not _same(x, z):
            plan.refit(name, CrossMoments.of(x, z))
            changed.append(name)

    with observing(plan.models.dense, names, keep):
        for samples, batch in walk(images, plan.models.dense):
            run(plan.models.dense, batch, samples)
    with observing(plan.models.pruned, names, refit):
        for samples, batch in walk([torch.cat(list(images))], plan.models.pruned):
            run(plan.models.pruned, batch, samples)
    return tuple(changed)


def _consumer_by_consumer(plan: _Refit, images: Sequence[Tensor]) -> tuple[str, ...]:
    changed = []
    for name in plan.consumers:
        total: CrossMoments | None = None
        same = True
        for samples, batch in walk(images, plan.models.dense):
            x, z = (_read(plan, model, name, batch, samples) for model in (plan.models.dense, plan.models.pruned))
            same = same and _same(x, z)
            moments = CrossMoments.of(x, z)
            total = moments if total is None else total + moments
        if total is not None and not same:
            plan.refit(name, total)
            changed.append(name)
    return tuple(changed)


def _read(plan: _Refit, model: nn.Module, name: str, images: Tensor, samples: range) -> Tensor:
    """Run a model up to a consumer, and return the sampled rows of the consumer's input."""
    rows: list[Tensor] = []

    def stop(name: str, module: nn.Module, value: Tensor) -> None:
        rows.append(plan.sampler.rows(name, module, value, samples))
        raise Reached

    with observing(model, [name], stop), contextlib.suppress(Reached):
        run(model, images, samples)
    return rows[0]


def _same(x: Tensor, z: Tensor) -> bool:
    return x.shape == z.shape and torch.equal(x, z)
