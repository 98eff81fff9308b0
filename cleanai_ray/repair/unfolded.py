"""Unfolded refit: in execution order, each layer is regressed on the patches that the repaired model gives it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cleanai_ray.nn.consumers import shift_output
from cleanai_ray.nn.modes import evaluation_mode
from cleanai_ray.nn.patches import count_positions, matrix, offset, outputs, patches, reads_patches, set_matrix
from cleanai_ray.repair.images import Batches, Reached, device_of, read_images, run, walk
from cleanai_ray.repair.pair import ModelPair
from cleanai_ray.repair.patch_moments import PatchMoments
from cleanai_ray.repair.sampling import PositionSampler
from cleanai_ray.repair.trace import trace_consumers
from cleanai_ray.repair.track import Track
from cleanai_ray.repair.watching import Unit, branch_scale, trace_units, visiting

POSITIONS_PER_SAMPLE = 32
RIDGE = 1e-2
MAX_FEATURES = 4608
"""Features of one regression; the weights of a layer that reads more are refitted one part after another."""
MEMORY_LIMIT = 4 * 1024**3
_LIVE_TENSORS = 4
_SAMPLES_AT_ONCE = 128


@torch.no_grad()
def compensate_unfolded(
    models: ModelPair,
    batches: Batches,
    *,
    ridge: float = RIDGE,
    positions_per_sample: int = POSITIONS_PER_SAMPLE,
    passes: int = 1,
    memory_limit: int = MEMORY_LIMIT,
) -> tuple[str, ...]:
    """Refit the layers of a pruned model in execution order, in place, and return the names of those that changed.

    Each layer's weight, one number per output, input channel and tap of its kernel, is regressed on the patches that
    the pruned and already refitted model gives it, so that its outputs are those of the dense model's layer. The ridge
    pulls towards the present weight. The last layer of a block is refitted so that the block's sum is right: what the
    shortcut lacks becomes part of its target.

    Layers that run several times in a forward pass stay as they are.

    Args:
        models: The dense model and its pruned copy, which is changed.
        batches: Calibration images, or a function that opens them; they are read once and held in memory.
        ridge: Regularisation, as a share of the mean variance of the patches.
        positions_per_sample: Most output positions (pixels, tokens) to read per sample.
        passes: Times that all layers are refitted, each time from where they are.
        memory_limit: Bytes that the activations of a block may take. Beyond it, a block's layers are refitted in a pass
            each, batch by batch.

    Raises:
        CalibrationError: When a batch cannot be run.
    """
    images = read_images(batches)
    refit = Refit.prepare(models, images, ridge=ridge, positions_per_sample=positions_per_sample)
    for _ in range(passes):
        track = Track(models, images)
        for block in track.blocks:
            if block is not track.block:
                track.advance()
            refit.block(track, memory_limit)
    return tuple(refit.changed)


@dataclass(frozen=True, kw_only=True, eq=False)
class Refit:
    """Everything that refitting one model needs.

    Attributes:
        models: The models.
        units: The layers to refit, in the order in which they can be.
        sampler: The output positions to read.
        ridge: Regularisation.
        changed: Names of the layers that have changed so far.
    """

    models: ModelPair
    units: dict[str, Unit]
    sampler: PositionSampler
    ridge: float
    changed: dict[str, None] = field(default_factory=dict)

    @staticmethod
    def prepare(
        models: ModelPair, images: Sequence[Tensor], *, ridge: float, positions_per_sample: int = POSITIONS_PER_SAMPLE
    ) -> Refit:
        """Find the layers of a pruned model."""
        first = images[0][:1].to(device_of(models.pruned))
        consumers = trace_consumers(models.pruned, first, reads_patches)
        units = {unit.consumer.name: unit for unit in trace_units(models.pruned, first, consumers)}
        return Refit(models=models, units=units, sampler=PositionSampler(positions_per_sample), ridge=ridge)

    @torch.no_grad()
    def block(self, track: Track, memory_limit: int = MEMORY_LIMIT) -> None:
        """Refit the layers of a track's present block."""
        units = {name: unit for name, unit in self.units.items() if name in track.block.layers}
        if not units:
            return
        number = sum(len(batch) for batch in track.pruned)
        with evaluation_mode(self.models.dense), evaluation_mode(self.models.pruned):
            if number * _bytes_per_sample(track) <= memory_limit:
                targets = self._targets(track, units)
                self._in_one_pass(track, units, targets)
            else:
                for name in units:
                    self._layer_by_layer(track, name)

    def _targets(self, track: Track, units: dict[str, Unit]) -> dict[str, list[Tensor]]:
        """Return what each layer should make of each batch of images, [N, P, outputs]."""
        found: dict[str, list[Tensor]] = {name: [] for name in units}

        def keep(name: str, value: Tensor, shortcut: Tensor | None, samples: range) -> bool:
            _, made = self._effect(self.models.dense, name, value, shortcut, samples)
            kept = self.models.kept_outputs.get(name)
            found[name].append(made if kept is None else made[:, :, torch.as_tensor(kept, device=made.device)])
            return False

        self._visit(self.models.dense, units, track.dense, track.run_dense, keep)
        return found

    def _in_one_pass(self, track: Track, units: dict[str, Unit], targets: dict[str, list[Tensor]]) -> None:
        def refit(name: str, value: Tensor, shortcut: Tensor | None, samples: range) -> bool:
            target = torch.cat(targets.pop(name))
            changed = False
            for part in self._parts(name):
                total: PatchMoments | None = None
                for start in range(0, len(target), _SAMPLES_AT_ONCE):
                    some = slice(start, start + _SAMPLES_AT_ONCE)
                    beside = None if shortcut is None else shortcut[some]
                    moments = self._moments(name, value[some], beside, samples[some], target[some], part)
                    total = moments if total is None else total + moments
                assert total is not None
                changed = self._apply(name, total, part) or changed
            return changed

        self._visit(self.models.pruned, units, [torch.cat(track.pruned)], track.run_pruned, refit)

    def _layer_by_layer(self, track: Track, name: str) -> None:
        for part in self._parts(name):
            moments = self._sum_over_batches(track, name, part)
            if moments is not None:
                self._apply(name, moments, part)

    def _sum_over_batches(self, track: Track, name: str, part: slice) -> PatchMoments | None:
        units = {name: self.units[name]}
        targets = iter(self._targets(track, units)[name])
        total: PatchMoments | None = None

        def add(name: str, value: Tensor, shortcut: Tensor | None, samples: range) -> bool:
            nonlocal total
            moments = self._moments(name, value, shortcut, samples, next(targets), part)
            total = moments if total is None else total + moments
            raise Reached

        self._visit(self.models.pruned, units, track.pruned, track.run_pruned, add)
        return total

    def _visit(
        self,
        model: nn.Module,
        units: dict[str, Unit],
        batches: Sequence[Tensor],
        step: Callable[[Tensor], Tensor],
        visit: Callable[[str, Tensor, Tensor | None, range], bool],
    ) -> None:
        samples = range(0)

        def at(name: str, value: Tensor, shortcut: Tensor | None) -> bool:
            return visit(name, value, shortcut, samples)

        with visiting(model, units, at):
            for samples, batch in walk(batches, model):
                with contextlib.suppress(Reached):
                    run(step, batch, samples)

    def _effect(
        self, model: nn.Module, name: str, value: Tensor, shortcut: Tensor | None, samples: range
    ) -> tuple[Tensor, Tensor]:
        """Return the patches that a layer reads, [N, P, groups, features], and what it makes of them, [N, P, outputs].

        What it makes is its output before the batch-norm that follows, less the batch-norm's running mean; at a sum,
        the shortcut is part of it.
        """
        module, unit = model.get_submodule(name), self.units[name]
        positions = self.sampler.positions(name, samples, count_positions(module, value, len(samples)))
        rows = patches(module, value, positions)
        made = torch.einsum("npgf,gof->npgo", rows, matrix(module)).flatten(2)
        bias = offset(module)
        if bias is not None:
            made = made + bias
        if unit.consumer.norm is not None:
            mean = model.get_submodule(unit.consumer.norm).running_mean
            assert isinstance(mean, Tensor)
            made = made - mean
        if unit.branch is not None and shortcut is not None:
            made = made + outputs(module, shortcut, positions) / branch_scale(model, unit.branch)
        return rows, made

    def _parts(self, name: str) -> Iterator[slice]:
        """Yield the features that are refitted at once."""
        number = matrix(self.models.pruned.get_submodule(name)).shape[2]
        for start in range(0, number, MAX_FEATURES):
            yield slice(start, start + MAX_FEATURES)

    def _moments(
        self, name: str, value: Tensor, shortcut: Tensor | None, samples: range, target: Tensor, part: slice
    ) -> PatchMoments:
        rows, made = self._effect(self.models.pruned, name, value, shortcut, samples)
        return PatchMoments.of(rows[..., part].flatten(0, 1), made.flatten(0, 1), target.flatten(0, 1))

    def _apply(self, name: str, moments: PatchMoments, part: slice) -> bool:
        """Refit a layer, and return whether it was not right already."""
        if moments.is_right:
            return False
        change, shift = moments.solve(self.ridge)
        module = self.models.pruned.get_submodule(name)
        weight = matrix(module).clone()
        weight[:, :, part] += change.to(weight)
        set_matrix(module, weight)
        shift_output(self.models.pruned, self.units[name].consumer, shift)
        self.changed[name] = None
        return True


def _bytes_per_sample(track: Track) -> int:
    """Return the bytes that one image takes while a block runs: a few of the largest activations."""
    largest = 0

    def after(module: nn.Module, args: object, output: object) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel() * output.element_size())

    handles = [module.register_forward_hook(after) for module in track.models.pruned.modules()]
    try:
        first = track.pruned[0][:1].to(device_of(track.models.pruned))
        largest = first.numel() * first.element_size()
        track.run_pruned(first)
    finally:
        for handle in handles:
            handle.remove()
    return _LIVE_TENSORS * largest
