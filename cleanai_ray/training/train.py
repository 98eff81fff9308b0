"""Training of a dense model from its initial weights."""

from __future__ import annotations

from torch import nn

from cleanai_ray.config.finetune import FineTuneSection
from cleanai_ray.config.sections import TrainSection
from cleanai_ray.training.context import TrainingContext
from cleanai_ray.training.data import TrainingData
from cleanai_ray.training.distillation import Supervision
from cleanai_ray.training.fine_tune import FineTuneResult, fine_tune

_WARMUP_SHARE = 0.05


def dense_recipe(section: TrainSection) -> FineTuneSection:
    """Return the recipe of a dense model's training, as a `finetune` section.

    SGD with Nesterov momentum 0.9, or AdamW; linear warm-up over 5 % of the epochs, at most one, then cosine; no label
    smoothing, no early stopping.
    """
    recipe = {
        "epochs": section.epochs,
        "optimizer": section.optimizer,
        "learning_rate": section.learning_rate,
        "momentum": 0.9,
        "weight_decay": section.weight_decay,
        "scheduler": "cosine",
        "warmup_epochs": min(1.0, _WARMUP_SHARE * section.epochs),
        "label_smoothing": 0.0,
        "batch_size": section.batch_size,
        "precision": section.precision,
        "early_stopping": None,
    }
    return FineTuneSection.model_validate(recipe)


def train_dense(
    model: nn.Module,
    *,
    section: TrainSection,
    data: TrainingData,
    context: TrainingContext,
    supervision: Supervision | None = None,
) -> FineTuneResult:
    """Train a dense model in place; it ends with the weights of its best epoch.

    The loop, the arguments and the errors are those of `fine_tune`; the recipe is `dense_recipe`'s, and the seed is the
    section's.
    """
    return fine_tune(
        model,
        section=dense_recipe(section),
        data=data,
        context=context,
        seed=section.seed,
        supervision=supervision,
    )
