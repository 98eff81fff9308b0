"""The stages of a study as plain functions: the dense model, one trial. No Ray here."""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from typing import Any

from torch import nn

from cleanai_ray.config.study import Study, Trial
from cleanai_ray.deploy import Quantized
from cleanai_ray.evaluation.accuracy import Accuracy, evaluate
from cleanai_ray.models import build_model
from cleanai_ray.nn.weights import safetensors_bytes
from cleanai_ray.pruning.plan import PruningPlan
from cleanai_ray.stages.clock import TrialClock
from cleanai_ray.stages.columns import (
    describe_repair,
    describe_trial,
    skipped_by_repair,
)
from cleanai_ray.stages.measures import DenseMeasures
from cleanai_ray.stages.prune_and_recover import FloatStages, run_float_stages
from cleanai_ray.stages.quantize import measure_costs, quantize_trial
from cleanai_ray.stages.workspace import Workspace
from cleanai_ray.storage import schemas
from cleanai_ray.training.context import LocalContext, TrainingContext
from cleanai_ray.training.train import train_dense


@dataclass(frozen=True, kw_only=True)
class DenseModel:
    """The dense model and what it scores.

    Attributes:
        weights: Content of its safetensors file.
        accuracy: Its score on the evaluation samples.
        history: A row per epoch, where the study trained it.
    """

    weights: bytes
    accuracy: Accuracy
    history: tuple[dict[str, Any], ...] = ()

    @property
    def digest(self) -> str:
        """Digest of the weights."""
        return hashlib.sha256(self.weights).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrialOutcome:
    """What one trial produced.

    Attributes:
        row: Its row of results.parquet.
        layers: Its rows of layers.parquet.
        classes: Its rows of classes.parquet.
        history: Its rows of history.parquet.
        latency: Its rows of latency.parquet.
        model: The pruned model after the last stage, in float; None for a failed trial.
        plan: What was removed; None for a failed trial.
        quantized: The quantised model, where the trial asks for one.
    """

    row: dict[str, Any]
    layers: tuple[dict[str, Any], ...] = ()
    classes: tuple[dict[str, Any], ...] = ()
    history: tuple[dict[str, Any], ...] = ()
    latency: tuple[dict[str, Any], ...] = ()
    model: nn.Module | None = None
    plan: PruningPlan | None = None
    quantized: Quantized | None = None


def prepare_dense(workspace: Workspace, context: TrainingContext | None = None) -> DenseModel:
    """Build the dense model of a study, train it where the study says so, and score it.

    Args:
        workspace: The opened study.
        context: Where the training reports and keeps checkpoints; by default it does neither.
    """
    section = workspace.study.model
    train = section.train
    model = build_model(section, seed=train.seed if train else 0).to(workspace.device)
    history: tuple[dict[str, Any], ...] = ()
    if train is not None:
        epoch_batches, steps = workspace.training_batches(train.seed, train.batch_size)
        outcome = train_dense(
            model,
            section=train,
            train_batches=epoch_batches,
            steps_per_epoch=steps,
            validation_batches=lambda: workspace.batches("validation"),
            context=context or LocalContext(device=workspace.device),
        )
        history = tuple({"trial_id": schemas.DENSE, **row} for row in outcome.history)
    accuracy = evaluate(model, workspace.batches("evaluation"), device=workspace.device)
    return DenseModel(weights=safetensors_bytes(model), accuracy=accuracy, history=history)


def run_trial(
    workspace: Workspace,
    trial: Trial,
    dense: DenseModel,
    dense_model: nn.Module,
    measures: DenseMeasures,
    context: TrainingContext | None = None,
) -> TrialOutcome:
    """Score, prune, repair, fine-tune, quantise and evaluate one trial.

    Args:
        workspace: The opened study.
        trial: The cell of the sweep.
        dense: The dense weights and what they score.
        dense_model: The dense model on the workspace's device; it is not changed.
        measures: What was measured on it for all trials.
        context: The processes that fine-tune and score, where they report and keep checkpoints; by default this one
            alone.

    Raises:
        CleanAIError: When the trial cannot be carried out.
    """
    is_last = trial.quantization == "none"
    stages = run_float_stages(workspace, trial, dense_model, measures, context, is_compared=is_last)
    return finish_trial(workspace, trial, dense, dense_model, stages)


def finish_trial(
    workspace: Workspace, trial: Trial, dense: DenseModel, dense_model: nn.Module, stages: FloatStages
) -> TrialOutcome:
    """Quantise and time a trial's model, as far as the trial asks for it, and return all that there is to tell of it.

    Args:
        workspace: The opened study.
        trial: The cell of the sweep.
        dense: The dense weights and what they score.
        dense_model: The dense model on the workspace's device; it is not changed.
        stages: What came before, of this trial or of one that differs in quantisation alone; it is not changed.

    Raises:
        CleanAIError: When the trial cannot be carried out.
    """
    study, pruned, repaired, clock = workspace.study, stages.pruned, stages.repaired, stages.clock.branch()
    scores = stages.scores.branch(clock)
    quantized = quantize_trial(workspace, trial, pruned.model, scores, clock)
    latency, costs = measure_costs(workspace, trial, dense_model, pruned.model, quantized, clock)
    row = {
        **describe_trial(study, trial),
        "status": schemas.OK,
        "warnings": [*pruned.plan.warnings, *(skipped_by_repair(repaired.skipped) if repaired else [])],
        **scores.columns(dense.accuracy),
        "repair": describe_repair(repaired.chosen) if repaired else None,
        **costs,
        "channel_ratio_achieved": pruned.plan.channel_ratio,
        **_circumstances(workspace, clock, stages),
    }
    name = {"trial_id": trial.trial_id}
    return TrialOutcome(
        row=row,
        layers=tuple({**name, **layer} for layer in pruned.layers),
        classes=tuple({**name, **entry} for entry in scores.comparison.class_rows()),
        history=tuple({**name, **epoch} for epoch in stages.history),
        latency=tuple({**name, **entry} for entry in latency),
        model=pruned.model,
        plan=pruned.plan,
        quantized=quantized,
    )


def _circumstances(workspace: Workspace, clock: TrialClock, stages: FloatStages) -> dict[str, Any]:
    epochs = {"epochs_run": len(stages.history), "best_epoch": stages.best_epoch}
    where = {"node": platform.node(), "device": str(workspace.device)}
    return {"num_classes": workspace.study.model.num_classes, **epochs, **where, **clock.columns()}


def failed_outcome(study: Study, trial: Trial, error: str) -> TrialOutcome:
    """Return the outcome of a trial of a study that failed."""
    row = {**describe_trial(study, trial), "status": schemas.FAILED, "error": error, "warnings": []}
    return TrialOutcome(row={**row, "node": platform.node()})
