"""A dense model and its pruned copy, run side by side from block to block, each from what it made itself."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cleanai_ray.nn.batches import in_batches_of
from cleanai_ray.nn.modes import evaluation_mode
from cleanai_ray.nn.replay import Replay
from cleanai_ray.nn.segments import Segment, find_segments, group_segments, merge_segments
from cleanai_ray.repair.images import device_of, walk
from cleanai_ray.repair.pair import ModelPair

MEMORY_LIMIT = 8 * 1024**3


@dataclass(frozen=True, kw_only=True)
class Block:
    """A stretch of both models that one tensor enters and one leaves.

    Attributes:
        start: Place of its first segment.
        stop: Place of the segment after it; None: the block ends with the model's output.
        layers: Modules with weights of their own that run in it.
    """

    start: int
    stop: int | None
    layers: frozenset[str]


@dataclass(frozen=True, kw_only=True, eq=False)
class Feature:
    """A tensor between two segments that a pruned model should reproduce.

    Attributes:
        module: The module that reads it, with which a segment begins.
        axis: The dimension of its channels.
        channels: Dense indices of the channels that the pruned model has of it; None: all.
    """

    module: str
    axis: int = 1
    channels: Tensor | None = None

    def of_dense(self, value: Tensor) -> Tensor:
        """Return the channels that the pruned model has, of the dense model's tensor."""
        return value if self.channels is None else value.index_select(self.axis, self.channels.to(value.device))


class Track:
    """The blocks of a pair of models, and what each of them made of some images at the beginning of one block.

    Args:
        models: The models. The pruned one may change while it is on the track, but only in the present block and those
            after it.
        images: Batches of images; on any device.
        memory_limit: Bytes that a tensor between blocks may take, of all images in both models. Where it takes more,
            the two blocks are one; in the worst case the whole model is.

    Attributes:
        models: The models.
        segments: The segments at which the models can be cut.
        blocks: The blocks, in execution order.
        block: The present block.
        dense: What the dense model makes of each batch, up to the present block.
        pruned: The same for the pruned model.
    """

    def __init__(self, models: ModelPair, images: Sequence[Tensor], *, memory_limit: int = MEMORY_LIMIT) -> None:
        self.models = models
        first = images[0][:2].to(device_of(models.dense))
        found = find_segments(models.dense, first)
        self._dense, self._pruned = _replay_both(models, first, found)
        number = sum(len(batch) for batch in images)
        too_large = {
            segment.name
            for place, segment in enumerate(self._dense.segments)
            if place
            and number * sum(each.bytes_per_sample(place) for each in (self._dense, self._pruned)) > memory_limit
        }
        if too_large:
            found = merge_segments(self._dense.segments, too_large)
            self._dense, self._pruned = _replay_both(models, first, found)
        self.segments: tuple[Segment, ...] = tuple(self._dense.segments)
        self.blocks = tuple(_block(self.segments, places) for places in group_segments(self.segments))
        self.block = self.blocks[0]
        self.dense = list(images)
        self.pruned = list(images)
        found_features = {place: self._describe(place) for place in range(1, len(self.segments))}
        self._features = {place: feature for place, feature in found_features.items() if feature is not None}

    def run_dense(self, batch: Tensor) -> Tensor:
        """Run the dense model's present block."""
        return self._run(self._dense, batch)

    def run_pruned(self, batch: Tensor) -> Tensor:
        """Run the pruned model's present block."""
        return self._run(self._pruned, batch)

    def resize(self, size: int | None) -> None:
        """Cut what both models made of the images into batches of some size; None: leave them as they are."""
        if size is not None:
            self.dense, self.pruned = (in_batches_of(batches, size) for batches in (self.dense, self.pruned))

    def first(self, number: int) -> Track:
        """Return a view of the present block with the first batches alone."""
        view = copy.copy(self)
        view.dense, view.pruned = self.dense[:number], self.pruned[:number]
        return view

    @property
    def features(self) -> list[Feature]:
        """The tensors between blocks whose channels are known, in execution order."""
        return [self._features[block.start] for block in self.blocks[1:] if block.start in self._features]

    def feature(self, place: int) -> Feature | None:
        """Return the tensor that a segment begins with; None if it is unknown which channels were kept."""
        return self._features.get(place)

    def _describe(self, place: int) -> Feature | None:
        segment, wide, narrow = self.segments[place], self._dense.shape(place), self._pruned.shape(place)
        if wide == narrow:
            return Feature(module=segment.name)
        axes = [axis for axis, sizes in enumerate(zip(wide, narrow, strict=True)) if sizes[0] != sizes[1]]
        if len(axes) > 1 or not segment.layers:
            return None
        reader = segment.layers[0]
        # A batch-norm or depthwise convolution reads the channels that it gives.
        kept = self.models.kept_inputs.get(reader, self.models.kept_outputs.get(reader))
        if kept is None or len(kept) != narrow[axes[0]] or int(kept.max()) >= wide[axes[0]]:
            return None
        return Feature(module=segment.name, axis=axes[0], channels=torch.as_tensor(kept))

    @torch.no_grad()
    def advance(self, dense: list[Tensor] | None = None, pruned: list[Tensor] | None = None) -> None:
        """Go on to the next block; each model's inputs there are what it makes of its inputs here.

        Args:
            dense: What the dense model's block makes of each batch, if that is known.
            pruned: The same for the pruned model.
        """
        following = self.blocks[self.blocks.index(self.block) + 1]
        with evaluation_mode(self.models.dense), evaluation_mode(self.models.pruned):
            self.dense = self._outputs(self._dense, self.dense, dense)
            self.pruned = self._outputs(self._pruned, self.pruned, pruned)
        self.block = following

    def _outputs(self, replay: Replay, batches: Sequence[Tensor], known: list[Tensor] | None) -> list[Tensor]:
        place = batches[0].device
        if known is not None:
            return [batch.to(place) for batch in known]
        return [self._run(replay, batch).to(place) for _, batch in walk(batches, replay.model)]

    def _run(self, replay: Replay, batch: Tensor) -> Tensor:
        result: Tensor = replay.run(batch, start=self.block.start, stop=self.block.stop)
        return result


def _replay_both(models: ModelPair, images: Tensor, found: Sequence[Segment]) -> tuple[Replay, Replay]:
    """Return runs of both models over the same segments, those at which both can be cut."""
    while True:
        dense = Replay(models.dense, images, found)
        pruned = Replay(models.pruned, images, dense.segments)
        if len(pruned.segments) == len(dense.segments):
            return dense, pruned
        found = pruned.segments


def _block(segments: Sequence[Segment], places: range) -> Block:
    stop = places.stop if places.stop < len(segments) else None
    layers = frozenset(name for place in places for name in segments[place].layers)
    return Block(start=places.start, stop=stop, layers=layers)
