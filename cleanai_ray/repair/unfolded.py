"""Unfolded refit: in execution order, each layer is regressed on the patches that the repaired model gives it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.errors import CalibrationError
from cleanai_ray.nn.batches import fast_batches, fast_layout
from cleanai_ray.nn.consumers import shift_output
from cleanai_ray.nn.memory import working_bytes
from cleanai_ray.nn.modes import evaluation_mode
from cleanai_ray.nn.patches import matrix, reads_patches, set_matrix
from cleanai_ray.repair.block_sizes import BlockSizes
from cleanai_ray.repair.evidence import SAMPLES_AT_ONCE, EvidenceSum
from cleanai_ray.repair.images import Batches, Reached, device_of, read_images, run, walk
from cleanai_ray.repair.pair import ModelPair
from cleanai_ray.repair.rectified import RowSample
from cleanai_ray.repair.rectifiers import ActiveRange, find_active_ranges
from cleanai_ray.repair.rows import Rows
from cleanai_ray.repair.sampling import PositionSampler
from cleanai_ray.repair.trace import trace_consumers
from cleanai_ray.repair.track import Track
from cleanai_ray.repair.watching import Unit, trace_units, visiting

POSITIONS_PER_SAMPLE = 32
MAX_FEATURES = 4608
"""Features of one regression; the weights of a layer that reads more are refitted one part after another."""
_Made = list[Tensor] | None


@torch.no_grad()
def compensate_unfolded(
    models: ModelPair,
    batches: Batches,
    *,
    ridge: float | None = None,
    positions_per_sample: int = POSITIONS_PER_SAMPLE,
    memory_limit: int | None = None,
) -> tuple[str, ...]:
    """Refit the layers of a pruned model in execution order, in place, and return the names of those that changed.

    Each layer's weight, one number per output, input channel and tap of its kernel, is regressed on the patches that
    the pruned and already refitted model gives it, so that its outputs are those of the dense model's layer. The ridge
    pulls towards the present weight. The last layer of a block is refitted so that the block's sum is right: what the
    shortcut lacks becomes part of its target. Where a rectifier follows, only what it lets through must be right.

    Layers that run several times in a forward pass stay as they are, and so do layers that share their weight.

    Args:
        models: The dense model and its pruned copy, which is changed.
        batches: Calibration images, or a function that opens them; they are read once and held in memory.
        ridge: Regularisation, as a share of the mean variance of the patches. None: for each layer, the one of
            `LAYER_RIDGES` whose error is least on every fifth image, after a fit to the rest; the layer keeps its
            weights if that is better.
        positions_per_sample: Most output positions (pixels, tokens) to read per sample.
        memory_limit: Bytes that the activations of a block may take; None: those that the device may
            (`working_bytes`). Beyond it, a block's layers are refitted in a pass each, batch by batch.

    Raises:
        CalibrationError: When a batch cannot be run, or a layer's input or output is not finite.
    """
    images = read_images(batches)
    layout = fast_layout(models.dense, images[0][:1].to(device_of(models.dense)))
    images = [part for batch in images for part in fast_batches(batch, layout)]
    refit = Refit.prepare(models, images, ridge=ridge, positions_per_sample=positions_per_sample)
    track = Track(models, images)
    for _ in track.blocks[1:]:
        track.advance(*refit.block(track, memory_limit))
    refit.block(track, memory_limit)
    return tuple(refit.changed)


@dataclass(frozen=True, kw_only=True, eq=False)
class Refit:
    """Everything that refitting one model needs.

    Attributes:
        models: The models.
        rows: Reads the rows of the layers to refit.
        ridge: Regularisation; None: chosen for each layer.
        active: The ranges of outputs that make a difference, for the layers that a rectifier follows.
        changed: Names of the layers that have changed so far.
    """

    models: ModelPair
    rows: Rows
    ridge: float | None
    active: Mapping[str, ActiveRange]
    changed: dict[str, None] = field(default_factory=dict)

    @staticmethod
    def prepare(
        models: ModelPair,
        images: Sequence[Tensor],
        *,
        ridge: float | None,
        positions_per_sample: int = POSITIONS_PER_SAMPLE,
    ) -> Refit:
        """Find the layers of a pruned model."""
        first = images[0][:2].to(device_of(models.pruned))
        first = first if len(first) > 1 else torch.cat([first, first])
        found = trace_consumers(models.pruned, first, reads_patches)
        consumers = [consumer for consumer in found if consumer.reads_samples]
        units = {unit.consumer.name: unit for unit in trace_units(models.pruned, first, consumers)}
        rows = Rows(models=models, units=units, sampler=PositionSampler(positions_per_sample))
        active = find_active_ranges(models, first, units)
        return Refit(models=models, rows=rows, ridge=ridge, active=active)

    @torch.no_grad()
    def block(self, track: Track, memory_limit: int | None = None) -> tuple[_Made, _Made]:
        """Refit the layers of a track's present block.

        Returns:
            What the dense and the refitted block make of each batch; None where it was not computed on the way.
        """
        units = {name: unit for name, unit in self.rows.units.items() if name in track.block.layers}
        if not units:
            return None, None
        limit = working_bytes(device_of(self.models.pruned)) if memory_limit is None else memory_limit
        with evaluation_mode(self.models.dense), evaluation_mode(self.models.pruned):
            sizes = BlockSizes.of(track, limit)
            track.resize(sizes.batch)
            if sizes.allows_one_pass(len(units)):
                targets, dense = self._targets(track, units)
                return dense, self._in_one_pass(track, units, targets)
            dense = None
            for some in self._fitting(units, sizes):
                targets, dense = self._targets(track, some)
                for name in some:
                    self._in_batches(track, name, torch.cat(targets.pop(name)))
        return dense, None

    def _fitting(self, units: dict[str, Unit], sizes: BlockSizes) -> Iterator[dict[str, Unit]]:
        """Yield the layers in groups whose targets fit into the memory allowed."""
        group: dict[str, Unit] = {}
        taken = 0
        for name, unit in units.items():
            outputs = matrix(self.models.pruned.get_submodule(name)).shape[:2].numel()
            needed = sizes.bytes_of_rows(self.rows.sampler.number, outputs)
            if group and taken + needed > sizes.memory_limit:
                yield group
                group, taken = {}, 0
            group[name] = unit
            taken += needed
        yield group

    def _targets(self, track: Track, units: dict[str, Unit]) -> tuple[dict[str, list[Tensor]], _Made]:
        """Return what each layer should make of each batch of images, [N, P, outputs]; and what the block makes."""
        found: dict[str, list[Tensor]] = {name: [] for name in units}

        def keep(name: str, value: Tensor, shortcut: Tensor | None, samples: range) -> bool:
            found[name].append(self.rows.target(name, value, shortcut, samples))
            return False

        return found, _visit(self.models.dense, units, track.run_dense, track.dense, keep, outputs=True)

    def _in_one_pass(self, track: Track, units: dict[str, Unit], targets: dict[str, list[Tensor]]) -> _Made:
        def refit(name: str, value: Tensor, shortcut: Tensor | None, samples: range) -> bool:
            target = torch.cat(targets.pop(name))
            changed = False
            for part in self._parts(name):
                sums = self._sums(name, len(target))
                for start in range(0, len(target), SAMPLES_AT_ONCE):
                    some = slice(start, start + SAMPLES_AT_ONCE)
                    beside = None if shortcut is None else shortcut[some]
                    sums.add(samples[some], *self._rows(name, value[some], beside, samples[some], target[some], part))
                changed = self._apply(name, sums, part) or changed
            return changed

        made = _visit(self.models.pruned, units, track.run_pruned, [torch.cat(list(track.pruned))], refit)
        return None if made is None else list(made[0].split([len(batch) for batch in track.pruned]))

    def _in_batches(self, track: Track, name: str, target: Tensor) -> None:
        for part in self._parts(name):
            sums = self._sums(name, len(target))

            def add(name: str, value: Tensor, shortcut: Tensor | None, samples: range) -> bool:
                wanted = target[samples.start : samples.stop]
                sums.add(samples, *self._rows(name, value, shortcut, samples, wanted, part))  # noqa: B023
                raise Reached

            _visit(self.models.pruned, {name: self.rows.units[name]}, track.run_pruned, track.pruned, add)
            if sums.has_rows:
                self._apply(name, sums, part)

    def _parts(self, name: str) -> Iterator[slice]:
        """Yield the features that are refitted at once."""
        number = matrix(self.models.pruned.get_submodule(name)).shape[2]
        for start in range(0, number, MAX_FEATURES):
            yield slice(start, start + MAX_FEATURES)

    def _rows(
        self, name: str, value: Tensor, shortcut: Tensor | None, samples: range, target: Tensor, part: slice
    ) -> tuple[Tensor, Tensor, Tensor]:
        patches, made = self.rows.made(name, value, shortcut, samples)
        return patches[..., part], made, target.to(made.device)

    def _sums(self, name: str, number: int) -> EvidenceSum:
        """Return the evidence to gather for a layer from a number of images."""
        active = self.active.get(name)
        return EvidenceSum(None if active is None else RowSample(active, number))

    def _apply(self, name: str, sums: EvidenceSum, part: slice) -> bool:
        """Refit a layer, and return whether it was not right already."""
        solution = sums.solve(self.ridge)
        if solution is None:
            return False
        change, shift = solution
        if not (torch.isfinite(change).all() and torch.isfinite(shift).all()):
            raise CalibrationError(f"the values around layer '{name}' are not finite on the calibration samples")
        module = self.models.pruned.get_submodule(name)
        weight = matrix(module).clone()
        weight[:, :, part] += change.to(weight)
        set_matrix(module, weight)
        shift_output(self.models.pruned, self.rows.units[name].consumer, shift)
        self.changed[name] = None
        return True


def _visit(
    model: nn.Module,
    units: Mapping[str, Unit],
    step: Callable[[Tensor], Any],
    batches: Sequence[Tensor],
    visit: Callable[[str, Tensor, Tensor | None, range], bool],
    *,
    outputs: bool = False,
) -> _Made:
    """Run batches, and return what comes out, or None where that is not always a tensor."""
    samples = range(0)
    made: list[Any] = []

    def at(name: str, value: Tensor, shortcut: Tensor | None) -> bool:
        return visit(name, value, shortcut, samples)

    with visiting(model, units, at, outputs=outputs):
        for samples, batch in walk(batches, model):
            with contextlib.suppress(Reached):
                made.append(run(step, batch, samples))
    return made if made and all(isinstance(value, Tensor) for value in made) else None
