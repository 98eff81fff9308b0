"""Pruning in steps, with repair and fine-tuning of the smaller model before the next step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from cleanai_ray.config.study import Trial, digest
from cleanai_ray.pruning.prune_result import PruneResult
from cleanai_ray.pruning.pruner import Pruner
from cleanai_ray.repair import ConsumerMoments, RepairOutcome
from cleanai_ray.stages.clock import TrialClock
from cleanai_ray.stages.measures import DenseMeasures
from cleanai_ray.stages.recover import fine_tune_trial, repair_trial
from cleanai_ray.stages.workspace import Workspace
from cleanai_ray.training.context import TrainingContext
from cleanai_ray.training.part import TrainingPart


@dataclass(frozen=True, kw_only=True, eq=False)
class Surgery:
    """A pruned model, and the model that it was cut out of.

    What repair has to restore is what the last surgery took. So it goes by the model before that: the dense one, or the
    fine-tuned model of the step before. The dense model would be wrong there, since refitting to it folds channels in
    that were made good for already, and undoes what fine-tuning taught the weights.

    Attributes:
        result: What is left of the dense model, and the plan, in dense numbering.
        reference: The model before the last surgery.
        earlier: What had been left of the dense model before that; None: all of it.
        moments: Moments of the reference's consumers, where they were measured before.
        history: Rows of history.parquet of the epochs between the steps, `trial_id` apart.
    """

    result: PruneResult
    reference: nn.Module
    earlier: PruneResult | None = None
    moments: ConsumerMoments | None = None
    history: tuple[dict[str, Any], ...] = ()

    def repair(self, workspace: Workspace) -> RepairOutcome:
        """Repair the pruned model, as the study says; see `recovery.repair_trial`."""
        result = self.result
        if self.earlier is not None:
            result = replace(
                result,
                kept_inputs=renumber(result.kept_inputs, self.earlier.kept_inputs),
                kept_outputs=renumber(result.kept_outputs, self.earlier.kept_outputs),
            )
        return repair_trial(workspace, self.reference, result, self.moments)

    def next_part(self, trial: Trial, step: int) -> TrainingPart:
        """Return which part of the trial's fine-tuning comes after this surgery, that of a step.

        Its name has a digest of what was removed, so that a checkpoint never gives one choice of channels the weights
        of another.
        """
        is_only = not self.history and step == trial.steps
        return TrainingPart(
            name="" if is_only else f"step{step}-{digest(self.result.plan.removed)}",
            step=step,
            epochs_before=len(self.history),
        )


def prune_in_steps(
    workspace: Workspace,
    trial: Trial,
    pruner: Pruner,
    dense_model: nn.Module,
    measures: DenseMeasures,
    context: TrainingContext,
    clock: TrialClock,
) -> Surgery:
    """Prune a trial's model step by step; repair and fine-tune it after each step but the last.

    After step k of n, (1 - ratio)^(k/n) of the channels are left (of a budget of the dense cost: budget^(k/n)). Each
    fine-tuning is a training of its own, `finetune.between_steps` epochs at the most, with its own schedule, early
    stopping and best epoch. The next step scores what came out of it: weights are those of the smaller, fine-tuned
    model; a method that measures anew measures that model; other methods read the dense model's statistics of the
    channels that are left. A step that removes nothing is followed by nothing.

    Args:
        workspace: The opened study.
        trial: The cell of the sweep.
        pruner: Prunes the dense model as the trial says; it has taken no step yet.
        dense_model: The dense model on the workspace's device; it is not changed.
        measures: What was measured on it.
        context: The processes that fine-tune.
        clock: Told of the time.

    Returns:
        The last surgery: neither repair nor fine-tuning followed it.
    """
    reference, earlier, moments = dense_model, None, measures.moments
    history: tuple[dict[str, Any], ...] = ()
    for step in range(1, trial.steps):
        with clock.stage("prune"):
            if not pruner.take_step(step):
                continue
            result = pruner.present()
        surgery = Surgery(result=result, reference=reference, earlier=earlier, moments=moments, history=history)
        model = result.model
        if workspace.study.repair.is_on:
            with clock.stage("repair"):
                model = surgery.repair(workspace).model
        with clock.stage("finetune"):
            part = surgery.next_part(trial, step)
            with context.together(model, part):
                history += fine_tune_trial(workspace, trial, model, dense_model, context, part).history
        pruner.adopt(model)
        reference, earlier, moments = model, result, None
    with clock.stage("prune"):
        pruner.take_step(trial.steps)
        result = pruner.finish()
    return Surgery(result=result, reference=reference, earlier=earlier, moments=moments, history=history)


def renumber(kept: Mapping[str, np.ndarray], earlier: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return kept channels as positions among those that were kept earlier; layers that lost none since are left out.

    Args:
        kept: Dense indices of the channels each narrowed layer has now, ascending.
        earlier: The same at an earlier time.
    """
    found = {}
    for layer, channels in kept.items():
        before = earlier.get(layer)
        if before is None:
            found[layer] = channels
        elif len(channels) < len(before):
            found[layer] = np.searchsorted(before, channels)
    return found
