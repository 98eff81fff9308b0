"""The dense model as one Ray task, on the best the cluster has, kept in the run directory."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import ray

from cleanai_ray.config.study import Study
from cleanai_ray.evaluation.accuracy import Accuracy
from cleanai_ray.executors.ray.cluster import Cluster, assigned_device, result_of
from cleanai_ray.executors.ray.files import CheckpointFile, RunFiles, checkpoint_name
from cleanai_ray.stages.fingerprints import dense_key
from cleanai_ray.stages.trial import DenseModel, prepare_dense
from cleanai_ray.stages.workspace import open_workspace
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.training.context import LocalContext

_WEIGHTS, _SCORE = "cache/dense.safetensors", "cache/dense.json"


def _prepare(study_json: str, files: RunFiles, checkpoint: str) -> DenseModel:
    workspace = open_workspace(study_json, assigned_device())
    dense = prepare_dense(
        workspace, LocalContext(device=workspace.device, checkpoints=CheckpointFile(files, checkpoint))
    )
    files.note_unreadable(workspace.unreadable.found)
    return dense


def obtain_dense(study: Study, run: RunDirectory, files: RunFiles, cluster: Cluster) -> DenseModel:
    """Return the dense model: from the run directory, or built, trained and scored by a worker and kept there.

    A training that was interrupted goes on from its last checkpoint.

    Args:
        study: The study.
        run: The run directory.
        files: The run directory, as workers reach it.
        cluster: The connected cluster.
    """
    key = dense_key(study)
    if run.is_complete(_SCORE, key) and run.exists(_WEIGHTS):
        return _read(run)
    checkpoint = checkpoint_name("dense", key)
    task = ray.remote(_prepare).options(
        name=f"dense-{study.name}",
        num_cpus=1 if cluster.gpus else max(1, int(cluster.node_cpus)),
        num_gpus=1 if cluster.gpus else 0,
    )
    dense: DenseModel = result_of(task.remote(study.model_dump_json(), files, checkpoint))
    run.write_bytes(_WEIGHTS, dense.weights)
    score = {"accuracy": asdict(dense.accuracy), "history": dense.history, "digest": dense.digest}
    run.write_json(_SCORE, score)
    run.mark(_SCORE, key)
    run.delete(checkpoint)
    return dense


def _read(run: RunDirectory) -> DenseModel:
    kept: dict[str, Any] = run.read_json(_SCORE)
    score: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in kept["accuracy"].items()
    }
    return DenseModel(weights=run.read_bytes(_WEIGHTS), accuracy=Accuracy(**score), history=tuple(kept["history"]))
