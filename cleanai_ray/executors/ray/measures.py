"""What trials share, measured once on the cluster and kept in the run directory."""

from __future__ import annotations

from typing import Any

import ray

from cleanai_ray.config.calibration_draw import CalibrationDraw
from cleanai_ray.config.study import Study
from cleanai_ray.executors.ray.calibration import calibrate_on_actors, calibration_pool, moments_on_actors
from cleanai_ray.executors.ray.cluster import Cluster, assigned_device, result_of
from cleanai_ray.executors.ray.files import RunFiles
from cleanai_ray.executors.ray.progress import Narrator
from cleanai_ray.importance.curves import SensitivityCurves
from cleanai_ray.repair.moments import ConsumerMoments
from cleanai_ray.stages.fingerprints import moments_key
from cleanai_ray.stages.measures import (
    DenseMeasures,
    measure_study_curves,
    measures_folder,
    moment_shards,
    needs_curves,
    needs_moments,
    needs_statistics,
)
from cleanai_ray.stages.workspace import Workspace, open_workspace
from cleanai_ray.storage.run_directory import RunDirectory


def measure_draws(
    study: Study,
    workspace: Workspace,
    weights: Any,
    dense_digest: str,
    run: RunDirectory,
    files: RunFiles,
    cluster: Cluster,
    narrator: Narrator,
) -> dict[CalibrationDraw, Any]:
    """Return references to what the trials of each draw of the calibration samples read; see `measure_dense`."""
    found, draws = {}, study.draws()
    for draw in draws:
        if len(draws) > 1:
            narrator.say(f"calibration samples: {draw.samples}, draw {draw.seed}")
        own = open_workspace(study.model_dump_json(), str(workspace.device), draw) if draw != draws[0] else workspace
        folder = measures_folder(study, draw)
        found[draw] = ray.put(
            measure_dense(study.of_draw(draw), own, weights, dense_digest, run, files, cluster, narrator, folder)
        )
    return found


def measure_dense(
    study: Study,
    workspace: Workspace,
    weights: Any,
    dense_digest: str,
    run: RunDirectory,
    files: RunFiles,
    cluster: Cluster,
    narrator: Narrator,
    folder: str = "cache",
) -> DenseMeasures:
    """Return what the trials of a study read: from the run directory, or measured and kept there.

    Args:
        study: The study, of one draw of the calibration samples.
        workspace: The study, opened in this process.
        weights: Reference to the dense weights in the object store.
        dense_digest: Digest of the dense weights.
        run: The run directory.
        files: The run directory, as workers reach it.
        cluster: The connected cluster.
        narrator: Told of the stages.
        folder: Where the run directory keeps them.

    Raises:
        CleanAIError: When something cannot be measured; the message says which sample or layer.
    """
    statistics = moments = curves = None
    with calibration_pool(study, cluster, run, files, narrator) as pool:
        if needs_statistics(study):
            with narrator.stage("calibration"):
                statistics = calibrate_on_actors(study, weights, dense_digest, run, pool, folder)
        if needs_moments(study):
            with narrator.stage("second moments"):
                num_shards = len(moment_shards(workspace))
                moments = moments_on_actors(study, num_shards, weights, dense_digest, run, pool, folder)
    if needs_curves(study):
        assert moments is not None
        with narrator.stage("sensitivity"):
            curves = curves_on_worker(study, moments, weights, dense_digest, run, cluster, folder)
    return DenseMeasures(statistics=statistics, moments=moments, curves=curves)


def _curves(study_json: str, weights: bytes, moments: ConsumerMoments) -> str:
    workspace = open_workspace(study_json, assigned_device())
    return measure_study_curves(workspace, workspace.dense_model(weights), moments).to_json()


def curves_on_worker(
    study: Study,
    moments: ConsumerMoments,
    weights: Any,
    dense_digest: str,
    run: RunDirectory,
    cluster: Cluster,
    folder: str = "cache",
) -> SensitivityCurves:
    """Return the sensitivity curves of a study's dense model, from a task that takes a node's cores, or a GPU."""
    name, key = f"{folder}/curves.json", moments_key(study, dense_digest)
    if run.is_complete(name, key):
        return SensitivityCurves.from_json(run.read_text(name))
    task = ray.remote(_curves).options(
        name=f"sensitivity-{study.name}",
        num_cpus=1 if cluster.gpus else max(1, int(cluster.node_cpus)),
        num_gpus=1 if cluster.gpus else 0,
    )
    text = result_of(task.remote(study.model_dump_json(), weights, moments))
    run.write_text(name, text)
    run.mark(name, key)
    return SensitivityCurves.from_json(text)
