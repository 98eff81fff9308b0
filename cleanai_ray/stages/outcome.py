"""The outcome of a trial: its rows of every table, and its model."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from cleanai_ray.config.study import Study, Trial
from cleanai_ray.deploy import Quantized
from cleanai_ray.errors import EvaluationError
from cleanai_ray.pruning.plan import PruningPlan
from cleanai_ray.stages.base import TrialSetting
from cleanai_ray.stages.blocks import blocks_as_json
from cleanai_ray.stages.columns import describe_repair, describe_trial, repair_warnings, score_columns
from cleanai_ray.stages.dense import DenseModel
from cleanai_ray.stages.dense_measures import DenseMeasures
from cleanai_ray.stages.evidence import correct_row, role_columns
from cleanai_ray.stages.pipeline import plan_stages, run_stages
from cleanai_ray.stages.scores import StageScore
from cleanai_ray.stages.state import TrialState
from cleanai_ray.stages.task_scores import class_rows
from cleanai_ray.stages.workspace import Workspace
from cleanai_ray.storage import schemas
from cleanai_ray.tasks.score import TaskScore
from cleanai_ray.training.context import LocalContext, TrainingContext

_TIMED = ("prune", "repair", "finetune", "quantize", "evaluate")


@dataclass(frozen=True, kw_only=True, eq=False)
class TrialOutcome:
    """What one trial produced.

    Attributes:
        row: Its row of results.parquet.
        layers: Its rows of layers.parquet.
        classes: Its rows of classes.parquet.
        history: Its rows of history.parquet.
        latency: Its rows of latency.parquet.
        hits: Its row of correct.parquet, the bytes in hexadecimal digits.
        removed: The number of channels that each narrowed group lost.
        blocks: The plans of the residual blocks that were removed, as JSON-like values.
        model: The pruned model after the last stage, in float; None for a failed trial.
        plan: The plan of the removal; None for a failed trial.
        quantized: The quantised model, if the trial asks for one.
    """

    row: dict[str, Any]
    layers: tuple[dict[str, Any], ...] = ()
    classes: tuple[dict[str, Any], ...] = ()
    history: tuple[dict[str, Any], ...] = ()
    latency: tuple[dict[str, Any], ...] = ()
    hits: tuple[dict[str, Any], ...] = ()
    removed: dict[str, int] = field(default_factory=dict)
    blocks: list[dict[str, Any]] = field(default_factory=list)
    model: nn.Module | None = None
    plan: PruningPlan | None = None
    quantized: Quantized | None = None


def run_trial(
    workspace: Workspace,
    trial: Trial,
    dense: DenseModel,
    dense_model: nn.Module,
    measures: DenseMeasures,
    context: TrainingContext | None = None,
) -> TrialOutcome:
    """Run one trial through all its stages.

    Args:
        workspace: The opened study.
        trial: The cell of the sweep.
        dense: The dense weights, their score and their logits.
        dense_model: The dense model on the workspace's device; it is not changed.
        measures: Measurements of the dense model that all trials share.
        context: The processes that fine-tune and score, and the places where they report and keep checkpoints; by
            default this process alone.

    Raises:
        CleanAIError: When a stage of the trial fails.
    """
    setting = TrialSetting(
        workspace=workspace,
        dense_model=dense_model,
        dense_logits=dense.logits,
        measures=measures,
        context=context or LocalContext(device=workspace.device),
    )
    ((_, state),) = run_stages(setting, [(trial, plan_stages(workspace.study, trial))])
    if isinstance(state, Exception):
        raise state
    return describe_outcome(workspace, trial, dense, state)


def describe_outcome(workspace: Workspace, trial: Trial, dense: DenseModel, state: TrialState) -> TrialOutcome:
    """Return the outcome of a trial that has completed all its stages.

    Args:
        workspace: The opened study.
        trial: The cell of the sweep.
        dense: The dense weights and their score.
        state: The state after the last stage.
    """
    assert state.pruned is not None
    study, pruned, repaired = workspace.study, state.pruned.result, state.repaired
    last = list(state.scores.values())[-1]
    plan, is_classification = pruned.plan, study.task.is_classification
    if not is_classification:
        plan = replace(plan, model={**plan.model, "task": study.task.name})
    hits = () if last.hits is None else (correct_row(trial.trial_id, dense.logits, last.hits),)
    row = {
        **describe_trial(study, trial),
        "status": schemas.OK,
        "warnings": [
            *pruned.plan.warnings,
            *(repair_warnings(repaired.skipped, repaired.notes) if repaired else []),
            *state.notices,
        ],
        **score_columns(dense.accuracy, state.scores, study.model.num_classes),
        **(role_columns(hits[0], dense.logits, study.evaluation.deciding_share) if hits else {}),
        "repair": describe_repair(repaired.chosen) if repaired else None,
        **state.costs,
        "channel_ratio_achieved": pruned.plan.channel_ratio,
        "removed_blocks": [block.name for block in pruned.plan.blocks] or None,
        "num_classes": study.model.num_classes if is_classification else None,
        "epochs_run": len(state.history),
        "best_epoch": state.best_epoch,
        "node": platform.node(),
        "device": str(workspace.device),
        **_seconds(state.seconds),
    }
    _require_columns("results.parquet", row, schemas.RESULTS.names)
    for epoch in state.history:
        _require_columns("history.parquet", epoch, schemas.HISTORY.names)
    name = {"trial_id": trial.trial_id}
    return TrialOutcome(
        row=row,
        layers=tuple({**name, **layer} for layer in pruned.layers),
        classes=tuple({**name, **entry} for entry in _class_rows(dense, last)),
        history=tuple({**name, **epoch} for epoch in state.history),
        latency=tuple({**name, **entry} for entry in state.latency),
        hits=hits,
        removed={name: len(channels) for name, channels in pruned.plan.removed.items()},
        blocks=blocks_as_json(pruned.plan.blocks),
        model=state.model,
        plan=plan,
        quantized=state.quantized,
    )


def _class_rows(dense: DenseModel, last: StageScore) -> Iterable[dict[str, Any]]:
    if last.comparison is not None:
        return last.comparison.class_rows()
    assert isinstance(dense.accuracy, TaskScore)
    assert isinstance(last.accuracy, TaskScore)
    return class_rows(dense.accuracy, last.accuracy)


def failed_outcome(study: Study, trial: Trial, error: str) -> TrialOutcome:
    """Return the outcome of a trial of a study that failed."""
    row = {**describe_trial(study, trial), "status": schemas.FAILED, "error": error, "warnings": []}
    return TrialOutcome(row={**row, "node": platform.node()})


def _require_columns(table: str, row: Mapping[str, Any], known: Sequence[str]) -> None:
    """Refuse a column that a stage of a plug-in made up, while the other trials can still go on."""
    unknown = sorted(row.keys() - set(known))
    if unknown:
        raise EvaluationError(
            f"{table} has no column '{unknown[0]}', which a stage of the trial gave; allowed: the columns of the table"
        )


def _seconds(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return the `seconds_` columns; the total includes stages that have no column of their own."""
    own = {f"seconds_{name}": seconds[name] for name in _TIMED if name in seconds}
    return {"seconds_total": sum(seconds.values()), **own}
