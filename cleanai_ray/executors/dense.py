"""The dense model of a run, kept in the run directory."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from cleanai_ray.evaluation.accuracy import Accuracy
from cleanai_ray.executors.checkpoints import CheckpointFile, checkpoint_name
from cleanai_ray.executors.context import RunContext
from cleanai_ray.executors.noted_work import run_noted
from cleanai_ray.executors.writer import RunStore
from cleanai_ray.stages.dense import DenseModel, prepare_dense
from cleanai_ray.stages.fingerprints import dense_key
from cleanai_ray.stages.workspace import open_workspace
from cleanai_ray.training.context import LocalContext

_WEIGHTS, _SCORE = "cache/dense.safetensors", "cache/dense.json"


def obtain_dense(context: RunContext) -> DenseModel:
    """Return the dense model from the run directory; if it is not there, have a worker build, train and score it.

    An interrupted training resumes from its last checkpoint.
    """
    study, run, key = context.study, context.run, dense_key(context.study)
    checkpoint = checkpoint_name("dense", key)

    def compute() -> bytes:
        arguments = study.model_dump_json(), context.executor.store, checkpoint
        dense: DenseModel = context.executor.call(f"dense-{study.name}", _prepare, *arguments)
        run.write_bytes(_WEIGHTS, dense.weights)
        score = {"accuracy": asdict(dense.accuracy), "history": dense.history, "digest": dense.digest}
        return json.dumps(score, indent=2).encode()

    context.cached(_SCORE, key, compute, needs=(_WEIGHTS,))
    kept: dict[str, Any] = run.read_json(_SCORE)
    run.delete(checkpoint)
    score: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in kept["accuracy"].items()
    }
    return DenseModel(weights=run.read_bytes(_WEIGHTS), accuracy=Accuracy(**score), history=tuple(kept["history"]))


def _prepare(device: str, study_json: str, store: RunStore, checkpoint: str) -> DenseModel:
    workspace = open_workspace(study_json, device)
    checkpoints = CheckpointFile(store, checkpoint)
    context = LocalContext(device=workspace.device, checkpoints=checkpoints)
    # If it is run again, it resumes from the last checkpoint of the training.
    dense = run_noted(store, workspace, "the dense model", lambda: prepare_dense(workspace, context))
    store.note_unreadable(workspace.unreadable.found)
    return dense
