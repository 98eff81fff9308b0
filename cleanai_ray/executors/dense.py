"""The dense model of a run, its logits and the memory that it takes, kept in the run directory."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

from cleanai_ray.config.digests import digest
from cleanai_ray.evaluation.kept_logits import KeptLogits
from cleanai_ray.executors.checkpoints import CheckpointFile, checkpoint_name
from cleanai_ray.executors.context import DenseWeights, RunContext
from cleanai_ray.executors.dense_epochs import epochs_shown, note_epoch
from cleanai_ray.executors.noted_work import run_noted
from cleanai_ray.executors.writer import RunStore
from cleanai_ray.stages.dense import DenseModel, digest_of, prepare_dense
from cleanai_ray.stages.fingerprints import dense_key, dense_weights_key
from cleanai_ray.stages.footprint import Footprint, batch_of, measure_footprint
from cleanai_ray.stages.scores import score_dense
from cleanai_ray.stages.workspace import open_workspace
from cleanai_ray.tasks.accuracy import Accuracy
from cleanai_ray.tasks.score import TaskScore
from cleanai_ray.training.context import LocalContext

_WEIGHTS, _SCORE = "cache/dense.safetensors", "cache/dense.json"
_LOGITS, _MEMORY = "cache/dense_logits.safetensors", "cache/memory.json"


def obtain_dense(context: RunContext) -> DenseModel:
    """Return the dense model from the run directory; if it is not there, have a worker build, train and score it.

    An interrupted training resumes from its last checkpoint. The pass over the evaluation samples that scores the model
    also gives the logits; where they alone are missing, or others are scored or otherwise, the kept weights are run
    once more.
    """
    study, run, executor, key = context.study, context.run, context.executor, dense_key(context.study)
    weights_key = dense_weights_key(study)
    checkpoint = checkpoint_name("dense", weights_key)

    def compute() -> bytes:
        dense = _scored_anew(context, weights_key)
        if dense is None:
            arguments = study.model_dump_json(), executor.store, checkpoint
            with epochs_shown(context, weights_key) if study.model.train is not None else nullcontext():
                dense = executor.call(f"dense-{study.name}", _prepare, *arguments, weights_key)
            run.write_bytes(_WEIGHTS, dense.weights)
            run.mark(_WEIGHTS, weights_key)
        run.write_bytes(_LOGITS, dense.logits.to_bytes())
        run.mark(_LOGITS, _logits_key(key, dense.digest))
        score = {"accuracy": asdict(dense.accuracy), "history": dense.history, "digest": dense.digest}
        return json.dumps({**score, "precision": study.evaluation.precision}, indent=2).encode()

    kept: dict[str, Any] = json.loads(context.cached(_SCORE, key, compute, needs=(_WEIGHTS,)))
    run.delete(checkpoint)
    weights = run.read_bytes(_WEIGHTS)

    def compute_logits() -> bytes:
        return _score(context, weights)[1].to_bytes()

    logits_key = _logits_key(key, kept["digest"])
    logits = KeptLogits.from_bytes(context.cached(_LOGITS, logits_key, compute_logits, needs=(_LOGITS,)))
    score = _score_of(kept["accuracy"])
    return DenseModel(weights=weights, accuracy=score, logits=logits, history=tuple(kept["history"]))


def _score_of(content: dict[str, Any]) -> Accuracy | TaskScore:
    """Return a score from what the run directory holds of it."""
    if "metric_name" in content:
        return TaskScore.from_json(content)
    score: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
    }
    return Accuracy(**score)


def _scored_anew(context: RunContext, weights_key: str) -> DenseModel | None:
    """Return the dense model of the run directory with a new score; None if its weights are not those of the study."""
    run = context.run
    if not run.is_complete(_WEIGHTS, weights_key) or not run.exists(_SCORE):
        return None
    weights, kept = run.read_bytes(_WEIGHTS), run.read_json(_SCORE)
    if kept["digest"] != digest_of(weights):
        return None
    accuracy, logits = _score(context, weights)
    return DenseModel(weights=weights, accuracy=accuracy, logits=logits, history=tuple(kept["history"]))


def _score(context: RunContext, weights: bytes) -> tuple[Accuracy | TaskScore, KeptLogits]:
    """Have a worker run the dense model over the evaluation samples."""
    study, executor = context.study, context.executor
    arguments = study.model_dump_json(), executor.store, weights
    found: tuple[Accuracy | TaskScore, KeptLogits] = executor.call(f"dense-score-{study.name}", _score_here, *arguments)
    return found


def _logits_key(dense: str, weights: str) -> str:
    """Return the digest of what kept logits depend on; the format since the second holds labels as well."""
    return digest([dense, weights, "logits/2"])


def _prepare(device: str, study_json: str, store: RunStore, checkpoint: str, key: str) -> DenseModel:
    workspace = open_workspace(study_json, device)
    checkpoints, train = CheckpointFile(store, checkpoint), workspace.study.model.train
    on_row = partial(note_epoch, store, key, train.epochs) if train is not None else None
    context = LocalContext(device=workspace.device, on_row=on_row, checkpoints=checkpoints)
    # If it is run again, it resumes from the last checkpoint of the training.
    dense = run_noted(store, workspace, "the dense model", lambda: prepare_dense(workspace, context))
    store.note_unreadable(workspace.unreadable.found)
    return dense


def _score_here(
    device: str, study_json: str, store: RunStore, weights: bytes
) -> tuple[Accuracy | TaskScore, KeptLogits]:
    workspace = open_workspace(study_json, device)
    model = workspace.dense_model(weights)
    found = run_noted(store, workspace, "the dense model", lambda: score_dense(workspace, model))
    store.note_unreadable(workspace.unreadable.found)
    return found


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
