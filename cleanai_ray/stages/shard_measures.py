"""Statistics and second moments of shards of the calibration samples, both from one forward pass over a shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.nn.open_attention import open_attention
from cleanai_ray.pruning.block_removal import left_of
from cleanai_ray.pruning.plan import BlockPlan
from cleanai_ray.repair.images import is_held_back
from cleanai_ray.repair.moments import ConsumerMoments, MomentRecorder, collect_moments
from cleanai_ray.sensitivity import reading_features
from cleanai_ray.stages.calibration import CalibrationNeeds, calibrate_batches
from cleanai_ray.stages.latency_profile import architecture, ignored_of
from cleanai_ray.stages.workspace import Workspace
from cleanai_ray.statistics import ActivationStatistics
from cleanai_ray.statistics.tensor_file import pack, unpack

_FORMAT = "cleanai-shard/1"

STATISTICS, MOMENTS = "statistics", "moments"
"""What a pass can measure."""

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardMeasures:
    """Measurements of a shard, or of several together: those of two sets of samples add up to those of their union.

    Attributes:
        statistics: Activation statistics; None where they were not asked for.
        moments: Second moments; None where they were not asked for, or where no sample of the shard gives any.
    """

    statistics: ActivationStatistics | None = None
    moments: ConsumerMoments | None = None

    def __add__(self, other: ShardMeasures) -> ShardMeasures:
        return ShardMeasures(
            statistics=_sum(self.statistics, other.statistics), moments=_sum(self.moments, other.moments)
        )

    def to_bytes(self) -> bytes:
        """Serialise without loss, as a safetensors file."""
        values = {STATISTICS: self.statistics, MOMENTS: self.moments}
        contents = {name: value.to_bytes() for name, value in values.items() if value is not None}
        tensors = {name: torch.frombuffer(bytearray(content), dtype=torch.uint8) for name, content in contents.items()}
        return pack(tensors, {"format": _FORMAT})

    @staticmethod
    def from_bytes(content: bytes) -> ShardMeasures:
        """Restore what `to_bytes` wrote.

        Raises:
            ArtifactError: When the bytes are something else.
        """
        tensors, _ = unpack(content, "measurements of a shard", _FORMAT)
        kinds: dict[str, Any] = {STATISTICS: ActivationStatistics, MOMENTS: ConsumerMoments}
        return ShardMeasures(**{name: kinds[name].from_bytes(tensors[name].numpy().tobytes()) for name in tensors})


def _sum(one: Any, other: Any) -> Any:
    return one if other is None else other if one is None else one + other


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """Some of the calibration samples, in the order in which they are read.

    Attributes:
        positions: Positions among the calibration samples, [n].
        gives_moments: The samples that give second moments, bool [n].
        first_number: Number of the first of them among all samples that give second moments, in reading order. Its
            number decides which positions of a sample are drawn; it does not depend on how shards are cut.
    """

    positions: np.ndarray
    gives_moments: np.ndarray
    first_number: int


def split_positions(workspace: Workspace) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the calibration images that give second moments, and of those held back.

    Every fifth image is held back, so that repair and sensitivity can be judged on images they were not fitted to. The
    moments are the same whichever trials read them.
    """
    limit = workspace.study.data.calibration.second_moment_samples
    positions = np.arange(min(limit, len(workspace.roles.calibration)))
    is_held = is_held_back(positions)
    held = positions[is_held] if is_held.any() else positions
    return positions[~is_held], held


def shards_of(workspace: Workspace, *kinds: str) -> list[Shard]:
    """Return the shards of a pass that measures `STATISTICS`, `MOMENTS` or both.

    If moments alone are measured, samples that give none are left out, and so are shards without any other.
    """
    working, _ = split_positions(workspace)
    found: list[Shard] = []
    number = 0
    for positions in workspace.shards():
        gives = np.isin(positions, working)
        if STATISTICS not in kinds:
            positions = positions[gives]
            gives = gives[gives]
        if len(positions):
            found.append(Shard(positions=positions, gives_moments=gives, first_number=number))
        number += int(np.count_nonzero(gives))
    return found


class ShardMeasurer:
    """Measures shards of the calibration samples; the graph of the model is traced once.

    A forward pass over a shard gives statistics of all its samples and, from the rows of those that are not held back,
    second moments. The moments of a ResNet-50 take 96 MB when a shard is sent: the upper triangles, float64.

    Args:
        workspace: The opened study.
        model: The dense model on the workspace's device; it is not changed.
        kinds: `STATISTICS`, `MOMENTS` or both.
        blocks: The blocks that the model is without.
    """

    def __init__(self, workspace: Workspace, model: nn.Module, *kinds: str, blocks: Sequence[BlockPlan] = ()) -> None:
        self._workspace = workspace
        self._model = open_attention(model)
        self._kinds = kinds
        self._needs = CalibrationNeeds.of(workspace.study)
        self._features = reading_features(study_graph(workspace, self._model, blocks)) if MOMENTS in kinds else {}
        self._shards = shards_of(workspace, *kinds)

    def num_samples(self, number: int) -> int:
        """Return the number of images of one shard."""
        return len(self._shards[number].positions)

    def shard(self, number: int) -> ShardMeasures:
        """Return the measurements of one shard."""
        shard = self._shards[number]
        batches = self._workspace.batches("calibration", positions=shard.positions)
        if MOMENTS not in self._kinds:
            return ShardMeasures(statistics=calibrate_batches(self._workspace, self._model, batches, self._needs))
        observed = self._observed()
        if STATISTICS not in self._kinds:
            first, precision = shard.first_number, self._workspace.study.data.calibration.precision
            return ShardMeasures(
                moments=collect_moments(self._model, batches, **observed, first_sample_id=first, precision=precision)
            )
        with MomentRecorder(self._model, **observed) as recorder:
            announced = _announced(self._workspace, shard, batches, recorder)
            statistics = calibrate_batches(self._workspace, self._model, announced, self._needs)
        return ShardMeasures(statistics=statistics, moments=recorder.moments())

    def _observed(self) -> dict[str, Any]:
        return {
            "layers": list(self._features),
            "features": self._features,
            "positions_per_sample": self._workspace.study.data.calibration.positions_per_sample,
        }


def _announced(
    workspace: Workspace, shard: Shard, batches: Iterator[Batch], recorder: MomentRecorder
) -> Iterator[Batch]:
    """Yield batches, and tell the recorder first which of their samples give moments.

    A batch of the study may come in several pieces, when memory has run out.
    """
    size, number = workspace.study.data.batch_size, shard.first_number
    starts = iter(range(0, len(shard.positions), size))
    left = np.zeros(0, dtype=bool)
    for batch in batches:
        while not len(left):  # A batch without a readable sample is not yielded.
            start = next(starts)
            is_readable = _readable(workspace, shard.positions[start : start + size])
            left = shard.gives_moments[start : start + size][is_readable]
        gives, left = np.split(left, [len(batch[0])])
        assert len(gives) == len(batch[0])
        samples = range(number, number + int(np.count_nonzero(gives)))
        recorder.announce(samples, gives)
        number = samples.stop
        yield batch


def _readable(workspace: Workspace, positions: np.ndarray) -> np.ndarray:
    """Return which calibration samples could be read, bool [n], once the batch that holds them has been."""
    found = workspace.unreadable.found
    if not found:
        return np.ones(len(positions), dtype=bool)
    split, indices = workspace.roles.calibration_split, workspace.roles.calibration[positions]
    return np.array([workspace.source.describe(split, int(index)) not in found for index in indices], dtype=bool)


def study_graph(workspace: Workspace, model: nn.Module, blocks: Sequence[BlockPlan] = ()) -> ChannelGraph:
    """Return the dependency graph of a study's model, which may be without some blocks."""
    dense = architecture(workspace.study) if blocks else model
    ignored, check = left_of(dense, ignored_of(workspace), blocks), workspace.study.pruning.check
    return ChannelGraph(model, workspace.example_input(), ignored, check=check)
