"""What a trial is before it is quantised and timed: pruned, repaired, fine-tuned, and scored after each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from cleanai_ray.config.evaluation import LatencySection
from cleanai_ray.config.study import Trial
from cleanai_ray.evaluation.latency import compare_latency
from cleanai_ray.importance.base import create_method
from cleanai_ray.pruning.latency_budget import prune_to_budget
from cleanai_ray.pruning.measurements import Measurements
from cleanai_ray.pruning.prune_result import PruneResult
from cleanai_ray.pruning.pruner import Pruner
from cleanai_ray.repair import RepairOutcome
from cleanai_ray.stages.calibration import calibrate_locally
from cleanai_ray.stages.clock import TrialClock
from cleanai_ray.stages.measures import DenseMeasures
from cleanai_ray.stages.recover import fine_tune_trial
from cleanai_ray.stages.scores import TrialScores
from cleanai_ray.stages.steps import Surgery, prune_in_steps
from cleanai_ray.stages.workspace import Workspace
from cleanai_ray.training.context import LocalContext, TrainingContext
from cleanai_ray.training.fine_tune import FineTuneResult


@dataclass(frozen=True, kw_only=True, eq=False)
class FloatStages:
    """What a trial is before it is quantised or timed: what trials share that differ in quantisation alone.

    Attributes:
        pruned: The plan, and the model after the last stage.
        repaired: What repair did, where it is on.
        best_epoch: The epoch whose weights the model has, where it was fine-tuned after the last step.
        history: A row per epoch.
        scores: What the model scored after each stage.
        clock: What took how long; a trial that is not the first to share them has one of its own.
    """

    pruned: PruneResult
    repaired: RepairOutcome | None
    best_epoch: int | None
    history: tuple[dict[str, Any], ...]
    scores: TrialScores
    clock: TrialClock


def run_float_stages(
    workspace: Workspace,
    trial: Trial,
    dense_model: nn.Module,
    measures: DenseMeasures,
    context: TrainingContext | None = None,
    *,
    is_compared: bool = True,
) -> FloatStages:
    """Prune, repair and fine-tune a trial's model, and score it after each; see `run_trial`.

    Unless `is_compared`, that is left to what quantisation makes of it.
    """
    clock, context = TrialClock(), context or LocalContext(device=workspace.device)
    surgery = _prune(workspace, trial, dense_model, measures, context, clock)
    pruned = surgery.result
    scores = TrialScores(workspace, dense_model, clock, context, is_compared)
    scores.add("pruned", pruned.model)
    repaired: RepairOutcome | None = None
    if workspace.study.repair.is_on:
        with clock.stage("repair"):
            repaired = surgery.repair(workspace)
            pruned = replace(pruned, model=repaired.model)
        scores.add("repaired", pruned.model)
    tuned = _fine_tune(workspace, trial, surgery, pruned.model, dense_model, context, clock)
    if tuned is not None:
        scores.add("finetuned", pruned.model)
    return FloatStages(
        pruned=pruned,
        repaired=repaired,
        best_epoch=tuned.best_epoch if tuned else None,
        history=(*surgery.history, *(tuned.history if tuned else ())),
        scores=scores,
        clock=clock,
    )


def _prune(
    workspace: Workspace,
    trial: Trial,
    dense_model: nn.Module,
    measures: DenseMeasures,
    context: TrainingContext,
    clock: TrialClock,
) -> Surgery:
    study, example = workspace.study, workspace.example_input()
    method = create_method(trial.method, dict(trial.options))
    timing = study.evaluation.latency or LatencySection()

    def pruner(part: Trial) -> Pruner:
        return Pruner(
            dense_model,
            example,
            part,
            bounds=study.pruning,
            ignored_layers=workspace.ignored_layers(),
            measured=Measurements(
                statistics=measures.statistics if method.needs_statistics else None,
                curves=measures.curves,
                remeasure=lambda smaller: calibrate_locally(workspace, smaller, trial),
                observe=study.data.calibration.observe,
            ),
        )

    def compare(small: nn.Module) -> dict[str, Any]:
        return compare_latency(dense_model, small, example, timing, device=workspace.device)

    if study.finetune.between_steps and trial.steps > 1:
        with clock.stage("prune"):
            stepwise = pruner(trial)
        return prune_in_steps(workspace, trial, stepwise, dense_model, measures, context, clock)
    with clock.stage("prune"):
        pruned = prune_to_budget(lambda part: pruner(part).run(), trial, study.pruning, compare)
    return Surgery(result=pruned, reference=dense_model, moments=measures.moments)


def _fine_tune(
    workspace: Workspace,
    trial: Trial,
    surgery: Surgery,
    model: nn.Module,
    dense_model: nn.Module,
    context: TrainingContext,
    clock: TrialClock,
) -> FineTuneResult | None:
    if not workspace.study.finetune.epochs:
        return None
    part = surgery.next_part(trial, trial.steps)
    with clock.stage("finetune"), context.together(model, part):
        return fine_tune_trial(workspace, trial, model, dense_model, context, part)
