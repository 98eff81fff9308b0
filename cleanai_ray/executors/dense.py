"""The dense model of a run, its logits and the memory that it takes, kept in the run directory."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from cleanai_ray.config.study import digest
from cleanai_ray.evaluation.kept_logits import KeptLogits
from cleanai_ray.executors.checkpoints import CheckpointFile, checkpoint_name
from cleanai_ray.executors.context import DenseWeights, RunContext
from cleanai_ray.executors.noted_work import run_noted
from cleanai_ray.executors.writer import RunStore
from cleanai_ray.stages.dense import DenseModel, prepare_dense
from cleanai_ray.stages.fingerprints import dense_key
from cleanai_ray.stages.footprint import Footprint, batch_of, measure_footprint
from cleanai_ray.stages.scores import score_dense
from cleanai_ray.stages.workspace import open_workspace
from cleanai_ray.tasks.accuracy import Accuracy
from cleanai_ray.training.context import LocalContext

_WEIGHTS, _SCORE = "cache/dense.safetensors", "cache/dense.json"
_LOGITS, _MEMORY = "cache/dense_logits.safetensors", "cache/memory.json"


def obtain_dense(context: RunContext) -> DenseModel:
    """Return the dense model from the run directory; if it is not there, have a worker build, train and score it.

    An interrupted training resumes from its last checkpoint. The pass over the evaluation samples that scores the model
    also gives the logits; where they alone are missing, the kept weights are run once more.
    """
    study, run, executor, key = context.study, context.run, context.executor, dense_key(context.study)
    checkpoint = checkpoint_name("dense", key)

    def compute() -> bytes:
        arguments = study.model_dump_json(), executor.store, checkpoint
        dense: DenseModel = executor.call(f"dense-{study.name}", _prepare, *arguments)
        run.write_bytes(_WEIGHTS, dense.weights)
        run.write_bytes(_LOGITS, dense.logits.to_bytes())
        run.mark(_LOGITS, _logits_key(key, dense.digest))
        score = {"accuracy": asdict(dense.accuracy), "history": dense.history, "digest": dense.digest}
        return json.dumps({**score, "precision": study.evaluation.precision}, indent=2).encode()

    kept: dict[str, Any] = json.loads(context.cached(_SCORE, key, compute, needs=(_WEIGHTS,)))
    run.delete(checkpoint)
    weights = run.read_bytes(_WEIGHTS)

    def compute_logits() -> bytes:
        arguments = study.model_dump_json(), executor.store, weights
        logits: KeptLogits = executor.call(f"dense-logits-{study.name}", _logits, *arguments)
        return logits.to_bytes()

    logits_key = _logits_key(key, kept["digest"])
    logits = KeptLogits.from_bytes(context.cached(_LOGITS, logits_key, compute_logits, needs=(_LOGITS,)))
    score: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in kept["accuracy"].items()
    }
    return DenseModel(weights=weights, accuracy=Accuracy(**score), logits=logits, history=tuple(kept["history"]))


def _logits_key(dense: str, weights: str) -> str:
    """Return the digest of what kept logits depend on; the format since the second holds labels as well."""
    return digest([dense, weights, "logits/2"])


def _prepare(device: str, study_json: str, store: RunStore, checkpoint: str) -> DenseModel:
    workspace = open_workspace(study_json, device)
    checkpoints = CheckpointFile(store, checkpoint)
    context = LocalContext(device=workspace.device, checkpoints=checkpoints)
    # If it is run again, it resumes from the last checkpoint of the training.
    dense = run_noted(store, workspace, "the dense model", lambda: prepare_dense(workspace, context))
    store.note_unreadable(workspace.unreadable.found)
    return dense


def _logits(device: str, study_json: str, store: RunStore, weights: bytes) -> KeptLogits:
    workspace = open_workspace(study_json, device)
    model = workspace.dense_model(weights)
    _, logits = run_noted(store, workspace, "the dense model", lambda: score_dense(workspace, model))
    store.note_unreadable(workspace.unreadable.found)
    return logits


def needed_memory(context: RunContext, dense: DenseWeights) -> int:
    """Return the bytes of memory that a trial takes on its device, from the run directory or measured now."""
    study = context.study
    key = digest([dense.digest, *batch_of(study), study.model.input_shape])

    def compute() -> bytes:
        arguments = study.model_dump_json(), dense.content
        found = context.executor.call(f"memory-{study.name}", _measure_memory, *arguments)
        return json.dumps(asdict(found), indent=2).encode()

    return int(json.loads(context.cached(_MEMORY, key, compute))["needed_bytes"])


def _measure_memory(device: str, study_json: str, weights: bytes) -> Footprint:
    workspace = open_workspace(study_json, device)
    return measure_footprint(workspace, workspace.dense_model(weights))
