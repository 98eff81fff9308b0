"""The dense model of a study: built or loaded, trained if the study says so, and scored."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from cleanai_ray.evaluation.kept_logits import KeptLogits
from cleanai_ray.models import build_model
from cleanai_ray.nn.weights import safetensors_bytes
from cleanai_ray.stages.scores import score_dense
from cleanai_ray.stages.task_scores import history_row
from cleanai_ray.stages.workspace import Workspace
from cleanai_ray.storage import schemas
from cleanai_ray.tasks.accuracy import Accuracy
from cleanai_ray.tasks.score import TaskScore
from cleanai_ray.training.context import LocalContext, TrainingContext
from cleanai_ray.training.data import TrainingData
from cleanai_ray.training.distillation import Supervision
from cleanai_ray.training.train import train_dense


@dataclass(frozen=True, kw_only=True)
class DenseModel:
    """The dense model, its score and its logits.

    Attributes:
        weights: Content of its safetensors file.
        accuracy: Its score on the evaluation samples.
        logits: Its logits on the evaluation samples, from the same pass; every trial is compared with them.
        history: A row per epoch if the study trained it.
    """

    weights: bytes
    accuracy: Accuracy | TaskScore
    logits: KeptLogits
    history: tuple[dict[str, Any], ...] = ()

    @property
    def digest(self) -> str:
        """Digest of the weights."""
        return digest_of(self.weights)


def digest_of(weights: bytes) -> str:
    """Return the digest of a weights file's content."""
    return hashlib.sha256(weights).hexdigest()[:16]


def prepare_dense(workspace: Workspace, context: TrainingContext | None = None) -> DenseModel:
    """Build the dense model of a study, train it if the study says so, and score it.

    Args:
        workspace: The opened study.
        context: Receives the training's reports and checkpoints; by default there are none.
    """
    section = workspace.study.model
    train = section.train
    model = build_model(section, seed=train.seed if train else 0, task=workspace.task).to(workspace.device)
    history: tuple[dict[str, Any], ...] = ()
    if train is not None:
        epoch_batches, steps = workspace.training_batches(train.seed, train.batch_size)
        outcome = train_dense(
            model,
            section=train,
            data=TrainingData(
                train_batches=epoch_batches,
                steps_per_epoch=steps,
                validation_batches=lambda: workspace.batches("validation"),
                later_batches=epoch_batches,
                start_competes=False,
            ),
            context=context or LocalContext(device=workspace.device),
            supervision=Supervision(task=workspace.task),
        )
        history = tuple({"trial_id": schemas.DENSE, **history_row(row)} for row in outcome.history)
    accuracy, logits = score_dense(workspace, model)
    return DenseModel(weights=safetensors_bytes(model), accuracy=accuracy, logits=logits, history=history)
