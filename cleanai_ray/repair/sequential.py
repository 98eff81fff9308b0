"""Weight compensation in execution order: each consumer is refitted to the output of the repaired layers before it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
from cleanai_ray.nn.memory import working_bytes
from cleanai_ray.nn.modes import evaluation_mode
from cleanai_ray.repair.compensation import channels_of, solve_ridge
from cleanai_ray.repair.images import Batches, Reached, device_of, read_images, run, walk
from cleanai_ray.repair.moments import CrossMoments
from cleanai_ray.repair.pair import ModelPair
from cleanai_ray.repair.sampling import POSITIONS_PER_SAMPLE, PositionSampler
from cleanai_ray.repair.trace import trace_consumers
from cleanai_ray.repair.track import Track

_LIVE_TENSORS = 4


Step = Callable[[Tensor], Any]


@dataclass(frozen=True, eq=False)
class _Stretch:
    """A part of both models that runs from a tensor: what runs it, and the batches of that tensor in each model.

    Of the outputs, only those that are read later are kept.
    """

    run_dense: Step
    run_pruned: Step
    dense: Sequence[Tensor]
    pruned: Sequence[Tensor]
    keeps_outputs: bool = False

    @staticmethod
    def whole(models: ModelPair, images: Sequence[Tensor]) -> _Stretch:
        """Return both models as a whole."""
        return _Stretch(models.dense, models.pruned, images, images)


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
        chosen = torch.eye(len(cross), dtype=cross.dtype, device=cross.device)
        if name in models.kept_inputs:
            chosen = chosen[:, channels_of(models.kept_inputs[name], self.features[name]).to(cross.device)]
        mapping = solve_ridge(cross, covariance, self.ridge, chosen)
        module = models.dense.get_submodule(name)
        weight = read_weight(module, self.features[name])[kept_rows(module, models.kept_outputs.get(name))]
        weight = weight.to(cross.device)
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
    memory_limit: int | None = None,
    half: bool | None = None,
) -> tuple[str, ...]:
    """Refit the consumers of a pruned model in execution order, in place, and return the names of those that changed.

    Each is refitted so that, from the input z that the pruned and already refitted model gives it, it computes what
    the dense model computes from its input x. Three kinds of consumers stay as they are: those that read exactly what
    the dense model's read, those that run several times in a forward pass, and those that read a flattened map whose
    channels are unknown.

    With all images in one batch this takes one pass of each model: a consumer is refitted when the pass reaches it. If
    that would need more memory than `memory_limit`, the models run block by block, and what they made of the images is
    kept between blocks. A block whose activations have no room either runs up to each of its consumers, batch by batch:
    about 3 passes in all for ResNet-50. Only where not even the tensors between blocks have room, the blocks are
    larger; as one block, the model takes half as many passes as it has consumers (26 for ResNet-50).

    Args:
        models: The dense model and its pruned copy, which is changed.
        batches: Calibration images, or a function that opens them; they are read once and held in memory.
        ridge: Regularisation, as a share of the mean variance of the inputs.
        positions_per_sample: Most positions (pixels, tokens) to read per sample.
        memory_limit: Bytes that activations may take; None: those that the device may (`working_bytes`).
        half: Whether tensors between blocks are kept in 16 bits (`HalfBatches`); None: on CUDA. In one pass, none are.

    Raises:
        CalibrationError: When a batch cannot be run.
    """
    images = read_images(batches)
    device = device_of(models.pruned)
    first = images[0][:1].to(device)
    plan = _plan(models, first, ridge, positions_per_sample)
    number = sum(len(batch) for batch in images)
    limit = working_bytes(device) if memory_limit is None else memory_limit
    with evaluation_mode(models.dense), evaluation_mode(models.pruned):
        if number * _bytes_per_sample(plan, list(plan.consumers), models.dense, first) <= limit:
            return _in_one_pass(plan, list(plan.consumers), _Stretch.whole(models, images))[0]
        half = device.type == "cuda" if half is None else half
        track = Track(models, images, memory_limit=memory_limit, half=half)
        return _block_by_block(plan, track, number, memory_limit)


def _plan(models: ModelPair, first: Tensor, ridge: float, positions_per_sample: int) -> _Refit:
    consumers, features = {}, {}
    for consumer in trace_consumers(models.pruned, first):
        module = models.dense.get_submodule(consumer.name)
        size = features_per_channel(module, models.kept_inputs.get(consumer.name)) if is_consumer(module) else None
        if size is not None and consumer.num_calls == 1 and consumer.reads_samples:
            consumers[consumer.name], features[consumer.name] = consumer, size
    return _Refit(
        models=models,
        consumers=consumers,
        features=features,
        sampler=PositionSampler(positions_per_sample, features),
        ridge=ridge,
    )


def _bytes_per_sample(plan: _Refit, names: Sequence[str], run_dense: Step, first: Tensor) -> int:
    """Return the bytes that one image takes: a few of the largest activations, and the dense model's sampled inputs."""
    kept = 0

    def before(name: str, module: nn.Module, value: Tensor) -> None:
        nonlocal kept
        rows = plan.sampler.rows(name, module, value, range(1))
        kept += rows.numel() * rows.element_size()

    with observing(plan.models.dense, names, before):
        largest = largest_activation(plan.models.dense, lambda: run_dense(first))
    return _LIVE_TENSORS * max(largest, first.numel() * first.element_size()) + kept


def _block_by_block(plan: _Refit, track: Track, number: int, memory_limit: int | None) -> tuple[str, ...]:
    changed: list[str] = []
    device = device_of(plan.models.pruned)
    for block in track.blocks:
        last = block is track.blocks[-1]
        names = [name for name in plan.consumers if name in track.block.layers]
        stretch = _Stretch(track.run_dense, track.run_pruned, track.dense, track.pruned, keeps_outputs=not last)
        first = track.dense[0][:1].to(device)
        limit = working_bytes(device) if memory_limit is None else memory_limit
        made = None
        if not names:
            pass
        elif number * _bytes_per_sample(plan, names, track.run_dense, first) <= limit:
            found, made = _in_one_pass(plan, names, stretch)
            changed += found
        else:
            changed += _consumer_by_consumer(plan, names, stretch)
        if not last:
            track.advance(*(made or (None, None)))
    return tuple(changed)


def _in_one_pass(
    plan: _Refit, names: Sequence[str], stretch: _Stretch
) -> tuple[tuple[str, ...], tuple[list[Tensor], list[Tensor]] | None]:
    """Refit the consumers of a stretch; return those that changed, and what both models make of each batch, if kept."""
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

    dense: list[Tensor] = []
    with observing(plan.models.dense, names, keep):
        for samples, batch in walk(stretch.dense, plan.models.dense):
            output = run(stretch.run_dense, batch, samples)
            if stretch.keeps_outputs:
                dense.append(output)
    with observing(plan.models.pruned, names, refit):
        for samples, batch in walk([torch.cat(list(stretch.pruned))], plan.models.pruned):
            made = run(stretch.run_pruned, batch, samples)
    if not stretch.keeps_outputs:
        return tuple(changed), None
    return tuple(changed), (dense, list(made.split([len(batch) for batch in stretch.pruned])))


def _consumer_by_consumer(plan: _Refit, names: Sequence[str], stretch: _Stretch) -> tuple[str, ...]:
    changed = []
    for name in names:
        total: CrossMoments | None = None
        same = True
        both = zip(walk(stretch.dense, plan.models.dense), walk(stretch.pruned, plan.models.pruned), strict=True)
        for (samples, dense), (_, pruned) in both:
            x = _read(plan, plan.models.dense, stretch.run_dense, name, dense, samples)
            z = _read(plan, plan.models.pruned, stretch.run_pruned, name, pruned, samples)
            same = same and _same(x, z)
            moments = CrossMoments.of(x, z)
            total = moments if total is None else total + moments
        if total is not None and not same:
            plan.refit(name, total)
            changed.append(name)
    return tuple(changed)


def _read(plan: _Refit, model: nn.Module, step: Step, name: str, batch: Tensor, samples: range) -> Tensor:
    """Run a stretch up to a consumer, and return the sampled rows of the consumer's input."""
    rows: list[Tensor] = []

    def stop(name: str, module: nn.Module, value: Tensor) -> None:
        rows.append(plan.sampler.rows(name, module, value, samples))
        raise Reached

    with observing(model, [name], stop), contextlib.suppress(Reached):
        run(step, batch, samples)
    return rows[0]


def _same(x: Tensor, z: Tensor) -> bool:
    return x.shape == z.shape and torch.equal(x, z)
