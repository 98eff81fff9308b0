"""A dense model and its pruned copy, run side by side from block to block, each from what it made itself."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cleanai_ray.nn.batches import in_batches_of
from cleanai_ray.nn.half import HalfBatches
from cleanai_ray.nn.memory import working_bytes
from cleanai_ray.nn.modes import evaluation_mode
from cleanai_ray.nn.replay import Replay
from cleanai_ray.nn.segments import Segment, find_segments, group_segments, merge_segments
from cleanai_ray.repair.images import device_of, walk
from cleanai_ray.repair.pair import ModelPair


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
        memory_limit: Bytes that a tensor between blocks may take, of all images in both models; None: half of what the
            device may take (`working_bytes`), as the tensors after a block are made while those before it are kept; if
            that is too little, and the host has room, they are kept there. Where a tensor takes more, the two blocks
            are one; in the worst case the whole model is.
        half: Whether these tensors are kept in 16 bits (`HalfBatches`).

    Attributes:
        models: The models.
        segments: The segments at which the models can be cut.
        blocks: The blocks, in execution order.
        block: The present block.
        dense: What the dense model makes of each batch, up to the present block.
        pruned: The same for the pruned model.
    """

    def __init__(
        self, models: ModelPair, images: Sequence[Tensor], *, memory_limit: int | None = None, half: bool = False
    ) -> None:
        self.models = models
        self._half = half
        device = device_of(models.dense)
        limits = (
            [memory_limit] * 2 if memory_limit is not None else [working_bytes(each) // 2 for each in (device, "cpu")]
        )
        self._room, room_of_host = (limit * (2 if half else 1) for limit in limits)
        first = images[0][:2].to(device)
        found = find_segments(models.dense, first)
        self._dense, self._pruned = _replay_both(models, first, found)
        self._number = sum(len(batch) for batch in images)
        room = max(self._room, room_of_host)
        too_large = {
            segment.name for place, segment in enumerate(self._dense.segments) if place and self._bytes(place) > room
        }
        if too_large:
            found = merge_segments(self._dense.segments, too_large)
            self._dense, self._pruned = _replay_both(models, first, found)
        self.segments: tuple[Segment, ...] = tuple(self._dense.segments)
        self.blocks = tuple(_block(self.segments, places) for places in group_segments(self.segments))
        self.block = self.blocks[0]
        self.dense: Sequence[Tensor] = list(images)
        self.pruned: Sequence[Tensor] = list(images)
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

    def _bytes(self, place: int) -> int:
        """Return the bytes of a segment's inputs, of all images in both models."""
        return self._number * sum(each.bytes_per_sample(place) for each in (self._dense, self._pruned))

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
        device = device_of(self.models.dense) if self._bytes(following.start) <= self._room else torch.device("cpu")
        with evaluation_mode(self.models.dense), evaluation_mode(self.models.pruned):
            self.dense = self._kept(dense or self._outputs(self._dense, self.dense), device)
            self.pruned = self._kept(pruned or self._outputs(self._pruned, self.pruned), device)
        self.block = following

    def _outputs(self, replay: Replay, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        return (self._run(replay, batch) for _, batch in walk(batches, replay.model))

    def _kept(self, made: Iterable[Tensor], device: torch.device) -> Sequence[Tensor]:
        return HalfBatches(made, device) if self._half else [batch.to(device) for batch in made]

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
