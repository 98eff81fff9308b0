"""The residual blocks that a study's budgets are best spent on, chosen for each budget by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from cleanai_ray.config.blocks import BlocksSection
from cleanai_ray.config.study import Study
from cleanai_ray.config.sweep import Budget
from cleanai_ray.pruning.measurements import Measurements
from cleanai_ray.pruning.plan import BlockPlan
from cleanai_ray.pruning.predicted_latency import PredictedLatency
from cleanai_ray.pruning.pruning_job import PruningJob
from cleanai_ray.sensitivity.block_choice import BlockChoice, choose_for_budget
from cleanai_ray.sensitivity.block_judge import BlockJudge
from cleanai_ray.stages.blocks import PricedBlocks, pricing_positions, pricing_repair
from cleanai_ray.stages.latency_profile import predicted_without, profile_of
from cleanai_ray.stages.workspace import Workspace
from cleanai_ray.tasks.base import find_task

if TYPE_CHECKING:
    import polars as pl


def choose_study_blocks(
    workspace: Workspace, model: nn.Module, blocks: PricedBlocks, budget: Budget, profile: pl.DataFrame | None
) -> BlockChoice:
    """Return the blocks that a budget of a study is better spent on than on narrower layers.

    Layers are narrowed by the method of `Study.choosing_trial`, on the samples that blocks were priced on.

    Args:
        workspace: The opened study.
        model: The dense model on its device, as the network of the study's task.
        blocks: The prices of its blocks.
        budget: The budget.
        profile: The study's profile.parquet, for a budget of latency.
    """
    study = workspace.study
    ignored = tuple(dict.fromkeys([*study.pruning.ignored_layers, *workspace.ignored_layers()]))
    job = PruningJob(
        model=model,
        example_inputs=workspace.example_input(),
        trial=study.choosing_trial(budget),
        bounds=study.pruning.model_copy(update={"ignored_layers": ignored, "remove_blocks": None}),
        task=find_task("classification"),  # The model is the network of the study's task already.
        loss=None if study.task.is_classification and study.task.loss is None else workspace.task.network_loss,
        calibration=study.data.calibration,
    )

    known = None if profile is None or budget.resource != "latency" else profile_of(workspace, profile)

    def predict(plans: Sequence[BlockPlan]) -> PredictedLatency:
        assert known is not None
        saved = replace(blocks, removed=tuple(plan.name for plan in plans)).time_saved
        return predicted_without(workspace, known, plans, saved)

    judge = BlockJudge(
        job,
        workspace.batches("calibration", positions=pricing_positions(workspace)),
        repair=pricing_repair(study),
        given=Measurements(multiple=study.multiple, observe=study.data.calibration.observe),
        predict=None if known is None else predict,
    )
    return choose_for_budget(blocks.errors, budget.resource, judge)


def without_choice(study: Study, names: Sequence[str], choices: Sequence[str]) -> Study:
    """Return a study of some of the budgets, whose blocks are known.

    Args:
        study: The study, which chooses its blocks by budget.
        names: The blocks; none: the study removes none.
        choices: The budgets as text.
    """
    removed = BlocksSection(names=tuple(names)) if names else None
    budgets = tuple(budget for budget in study.sweep.budgets if str(budget) in choices)
    return study.model_copy(
        update={
            "pruning": study.pruning.model_copy(update={"remove_blocks": removed}),
            "sweep": study.sweep.model_copy(update={"budgets": budgets, "controls": None}),
        }
    )
