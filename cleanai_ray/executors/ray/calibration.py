"""Calibration by actors: shards of samples in, one merged value out; actors may die, and nothing counts twice.

A shard's result is kept in the run directory before it is reported, statistics first and marker last, so that neither a
dead actor nor a dead driver costs more than the shards that were being computed. Results stay in the object store and
are added up by the actors in a tree of fixed shape: the driver sees references, and at the end one value, whose bits
do not depend on the number of actors or on what died on the way.
"""

from __future__ import annotations

import uuid
from typing import Any

import ray
from torch import nn

from cleanai_ray.config.study import Study
from cleanai_ray.executors.ray.cluster import Cluster, assigned_device
from cleanai_ray.executors.ray.files import RunFiles
from cleanai_ray.executors.ray.progress import Narrator
from cleanai_ray.executors.ray.shard_pool import ShardPool, ShardWork
from cleanai_ray.repair.moments import ConsumerMoments
from cleanai_ray.stages.calibration import CalibrationNeeds, calibrate_shard, count_shard
from cleanai_ray.stages.fingerprints import calibration_key, moments_key
from cleanai_ray.stages.measures import MomentCollector
from cleanai_ray.stages.workspace import Workspace, open_workspace
from cleanai_ray.statistics import ActivationHistograms, ActivationStatistics, Ranges
from cleanai_ray.statistics.merging import add_up
from cleanai_ray.storage.run_directory import RunDirectory

_KINDS: dict[str, Any] = {
    "calibrate": ActivationStatistics,
    "count": ActivationHistograms,
    "moments": ConsumerMoments,
}
"""What each method of the actor returns, serialised."""


class CalibrationActor:
    """Holds the dense model and the data set, and turns shards into mergeable values.

    The content of the dense weights' file comes with every call, from the object store, so that an actor that was
    started later has it too; the model is built from it once. Nothing is opened before the first call, so that what
    goes wrong is an error of that call.

    Args:
        study_json: The study.
        files: The run directory.
    """

    def __init__(self, study_json: str, files: RunFiles) -> None:
        self._study_json = study_json
        self._files = files
        self._workspace: Workspace | None = None
        self._model: nn.Module | None = None
        self._collector: MomentCollector | None = None

    def ready(self) -> None:
        """Return when the actor runs."""

    def compute(
        self, call: str, shard: int, name: str, inputs: str, weights: bytes, *arguments: Any
    ) -> tuple[int, bytes]:
        """Return how many images were read for a shard, and its result, serialised.

        The result is that of the run directory where there is one, and no image is read; or it is computed and kept
        there.

        Args:
            call: `calibrate`, `count` or `moments`.
            shard: The shard's number.
            name: Where it is kept.
            inputs: Digest of what it depends on.
            weights: Content of the dense weights' file.
            arguments: Further arguments of the call.
        """
        kept = self._files.read(name, inputs)
        if kept is not None:
            return 0, kept
        workspace = self._workspace = self._workspace or open_workspace(self._study_json, assigned_device())
        if self._model is None:
            self._model = workspace.dense_model(weights)
        samples, value = getattr(self, f"_{call}")(workspace, self._model, shard, *arguments)
        content = value.to_bytes()
        self._files.note_unreadable(workspace.unreadable.found)
        self._files.write(name, content, inputs)
        return samples, content

    def add(self, call: str, *contents: bytes) -> tuple[int, bytes]:
        """Return 0, for no image is read, and the sum of results, in their order."""
        kind = _KINDS[call]
        return 0, add_up([kind.from_bytes(content) for content in contents]).to_bytes()

    def _calibrate(self, workspace: Workspace, model: nn.Module, shard: int) -> tuple[int, ActivationStatistics]:
        positions = workspace.shards()[shard]
        return len(positions), calibrate_shard(workspace, model, positions, CalibrationNeeds.of(workspace.study))

    def _count(
        self, workspace: Workspace, model: nn.Module, shard: int, ranges: Ranges, sections: int
    ) -> tuple[int, ActivationHistograms]:
        positions = workspace.shards()[shard]
        return len(positions), count_shard(workspace, model, positions, ranges, sections)

    def _moments(self, workspace: Workspace, model: nn.Module, shard: int) -> tuple[int, ConsumerMoments]:
        if self._collector is None:
            self._collector = MomentCollector(workspace, model)
        return self._collector.num_samples(shard), self._collector.shard(shard)


def calibrate_on_actors(
    study: Study, weights: Any, dense_digest: str, run: RunDirectory, pool: ShardPool, folder: str = "cache"
) -> ActivationStatistics:
    """Return the study's calibration: from the run directory, or computed and kept there.

    Args:
        study: The study, of one draw.
        weights: Reference to the dense weights in the object store.
        dense_digest: Digest of the dense weights.
        run: The run directory.
        pool: The calibration actors.
        folder: Where the run directory keeps it.

    Raises:
        CleanAIError: When a shard cannot be computed; the message says which sample, or how often it was tried.
    """
    name, key = f"{folder}/calibration.safetensors", calibration_key(study, dense_digest)
    if run.is_complete(name, key):
        return ActivationStatistics.from_bytes(run.read_bytes(name))
    (draw,) = study.draws()
    num_shards = -(-draw.samples // study.data.calibration.shard_size)
    work = ShardWork(call="calibrate", title="calibration", num_shards=num_shards, inputs=key)
    statistics = ActivationStatistics.from_bytes(pool.work_through(work, weights))
    sections = CalibrationNeeds.of(study).sections
    if sections is not None:
        work = ShardWork(call="count", title="sections", num_shards=num_shards, inputs=key)
        counted = pool.work_through(work, weights, ray.put(statistics.ranges), sections)
        statistics = statistics.with_histograms(ActivationHistograms.from_bytes(counted))
    run.write_bytes(name, statistics.to_bytes())
    run.mark(name, key)
    pool.forget_shards()
    return statistics


def moments_on_actors(
    study: Study,
    num_shards: int,
    weights: Any,
    dense_digest: str,
    run: RunDirectory,
    pool: ShardPool,
    folder: str = "cache",
) -> ConsumerMoments:
    """Return the second moments of a study's dense model: from the run directory, or computed and kept there."""
    name, key = f"{folder}/moments.safetensors", moments_key(study, dense_digest)
    if run.is_complete(name, key):
        return ConsumerMoments.from_bytes(run.read_bytes(name))
    work = ShardWork(call="moments", title="second moments", num_shards=num_shards, inputs=key)
    content = pool.work_through(work, weights)
    run.write_bytes(name, content)
    run.mark(name, key)
    pool.forget_shards()
    return ConsumerMoments.from_bytes(content)


def calibration_pool(
    study: Study, cluster: Cluster, run: RunDirectory, files: RunFiles, narrator: Narrator
) -> ShardPool:
    """Return a pool of calibration actors for a study; they start when they are first needed."""

    def start(index: int) -> Any:
        actor = ray.remote(CalibrationActor).options(
            name=f"calibration-{study.name}-{index}-{uuid.uuid4().hex[:6]}",
            num_cpus=0 if cluster.gpus else 1,
            num_gpus=1 if cluster.gpus else 0,
        )
        return actor.remote(study.model_dump_json(), files)

    wanted = study.resources.calibration_actors
    return ShardPool(start, None if wanted == "auto" else int(wanted), run, narrator)
