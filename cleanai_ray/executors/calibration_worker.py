"""A worker that computes the results of shards of calibration samples, and adds them up."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from cleanai_ray.executors.noted_work import run_noted
from cleanai_ray.executors.writer import RunStore
from cleanai_ray.pruning.plan import BlockPlan
from cleanai_ray.stages.blocks import BareWeights, blocks_of, measured_model
from cleanai_ray.stages.calibration import count_shard
from cleanai_ray.stages.shard_measures import STATISTICS, ShardMeasurer, ShardMeasures
from cleanai_ray.stages.workspace import Workspace, open_workspace
from cleanai_ray.statistics import ActivationHistograms, Ranges
from cleanai_ray.statistics.merging import add_up

_KINDS: dict[str, Any] = {
    "calibrate": ShardMeasures,
    "count": ActivationHistograms,
}
"""The type of the value that each call returns, serialised."""
_TITLES = {"calibrate": "calibration", "count": "the histograms"}


class CalibrationWorker:
    """Holds the dense model and the data set, and computes shards.

    Every call passes the content of the dense weights' file, so that workers that start later get it as well; the model
    is built from it once. Nothing is opened before the first call, so that a problem is an error of that call.

    A shard's result is written to the run directory before it is returned, statistics first and marker last, so that
    the death of a worker or driver costs only the shards that were being computed.

    Args:
        study_json: The study.
        store: The run directory.
        device: Where to compute.
    """

    def __init__(self, study_json: str, store: RunStore, device: str) -> None:
        self._study_json = study_json
        self._store = store
        self._device = device
        self._workspace: Workspace | None = None
        self._model: nn.Module | None = None
        self._blocks: tuple[BlockPlan, ...] = ()
        self._measurers: dict[tuple[str, ...], ShardMeasurer] = {}

    def compute(
        self, call: str, shard: int, name: str, inputs: str, weights: bytes | BareWeights, *arguments: Any
    ) -> tuple[int, bytes]:
        """Return the number of images read for a shard, and its result, serialised.

        If the run directory holds the result, it is returned and no image is read; else it is computed and kept there.

        Args:
            call: `calibrate` or `count`.
            shard: Number of the shard.
            name: The file in the run directory that keeps the result.
            inputs: Digest of everything that the result depends on.
            weights: Content of the dense weights' file; with the blocks that the study removes, if it removes any.
            arguments: Further arguments of the call.
        """
        kept = self._store.read(name, inputs)
        if kept is not None:
            return 0, kept
        workspace = self._workspace = self._workspace or open_workspace(self._study_json, self._device)
        if self._model is None:
            self._model, self._blocks = measured_model(workspace, weights), blocks_of(weights)
        work = partial(getattr(self, f"_{call}"), workspace, self._model, shard, *arguments)
        samples, value = run_noted(self._store, workspace, _TITLES[call], work)
        content = value.to_bytes()
        self._store.note_unreadable(workspace.unreadable.found)
        self._store.write(name, content, inputs)
        return samples, content

    def add(self, call: str, *contents: bytes) -> tuple[int, bytes]:
        """Return 0, since no image is read, and the sum of the results, added in order."""
        kind = _KINDS[call]
        return 0, add_up([kind.from_bytes(content) for content in contents]).to_bytes()

    def _calibrate(self, workspace: Workspace, model: nn.Module, shard: int, *kinds: str) -> tuple[int, ShardMeasures]:
        kinds = kinds or (STATISTICS,)
        if kinds not in self._measurers:
            self._measurers[kinds] = ShardMeasurer(workspace, model, *kinds, blocks=self._blocks)
        measurer = self._measurers[kinds]
        return measurer.num_samples(shard), measurer.shard(shard)

    def _count(
        self, workspace: Workspace, model: nn.Module, shard: int, ranges: Ranges, num_bins: int
    ) -> tuple[int, ActivationHistograms]:
        positions = workspace.shards()[shard]
        return len(positions), count_shard(workspace, model, positions, ranges, num_bins)
