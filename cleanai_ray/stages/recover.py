"""What brings a trial's model back after surgery: repair, and fine-tuning in one process or in several."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from cleanai_ray.config.study import Study, Trial
from cleanai_ray.data import Share
from cleanai_ray.pruning.prune_result import PruneResult
from cleanai_ray.repair import RIDGES, ConsumerMoments, RepairOutcome, repair
from cleanai_ray.repair.auto import is_held_back
from cleanai_ray.stages.workspace import Workspace
from cleanai_ray.training.context import TrainingContext
from cleanai_ray.training.distillation import Supervision
from cleanai_ray.training.fine_tune import Batches, FineTuneResult, TrainingData, fine_tune
from cleanai_ray.training.part import TrainingPart


def repair_trial(
    workspace: Workspace, reference: nn.Module, pruned: PruneResult, moments: ConsumerMoments | None
) -> RepairOutcome:
    """Repair a trial's model with calibration images, as the study says.

    Args:
        workspace: The opened study.
        reference: The model before surgery, whose outputs repair goes by; it is not changed.
        pruned: What surgery made of it, with the kept channels in the reference's numbering.
        moments: Moments of the reference's consumers that were measured before; None: from the images.
    """
    section = workspace.study.repair
    positions = np.arange(min(section.samples, len(workspace.roles.calibration)))
    return repair(
        reference,
        pruned,
        list(workspace.batches("calibration", positions=positions)),
        compensation=section.compensation,
        batch_norm=section.batch_norm,
        ridge=section.ridge or RIDGES[0],
        ridges=RIDGES if section.ridge is None else (section.ridge,),
        moments=moments,
    )


def fine_tune_trial(
    workspace: Workspace,
    trial: Trial,
    model: nn.Module,
    teacher: nn.Module,
    context: TrainingContext,
    part: TrainingPart | None = None,
) -> FineTuneResult:
    """Fine-tune a trial's model in place; every process of the context calls it, with the same model.

    Args:
        workspace: The opened study.
        trial: The cell of the sweep.
        model: The pruned model.
        teacher: The dense model.
        context: This process among those that train.
        part: Which of the trial's fine-tunings this is; by default the one after its last pruning step.

    Returns:
        What the training did; its history has the column `step`.
    """
    section, share = workspace.study.finetune, (context.rank, context.world_size)
    part = part or TrainingPart(step=trial.steps)
    if part.step < trial.steps:
        section = section.model_copy(update={"epochs": section.between_steps})
    images = _labelled if section.data == "training" else _unlabelled
    train_batches, steps, validation_batches = images(workspace, trial.seed, section.batch_size, share)
    tuned = fine_tune(
        model,
        section=section,
        data=TrainingData(
            train_batches=train_batches,
            steps_per_epoch=steps,
            validation_batches=validation_batches,
            start_competes=_is_start_impartial(workspace.study),
        ),
        context=context,
        seed=trial.seed,
        supervision=Supervision(teacher=teacher if section.distillation else None),
        part=part,
    )
    return replace(tuned, history=tuple({**row, "step": part.step} for row in tuned.history))


def _is_start_impartial(study: Study) -> bool:
    """Whether a trial's model has not been made with the images that validate."""
    if study.finetune.data == "training":
        # Weights that came from elsewhere have most likely seen them.
        return study.model.train is not None
    # Repair that tries several ways holds back the same images; one that is told what to do reads all.
    return not study.repair.is_on or "auto" in (study.repair.compensation, study.repair.batch_norm)


_Images = tuple[Callable[[int], Batches], int, Callable[[], Batches]]
"""What makes the training batches of an epoch, how many they are, and what makes the validation batches."""


def _labelled(workspace: Workspace, seed: int, batch_size: int | None, share: Share) -> _Images:
    epoch_batches, steps = workspace.training_batches(seed, batch_size, share=share)
    return epoch_batches, steps, lambda: workspace.batches("validation", share=share)


def _unlabelled(workspace: Workspace, seed: int, batch_size: int | None, share: Share) -> _Images:
    """Take the calibration images: those validate that repair holds back, the others train."""
    positions = np.arange(len(workspace.roles.calibration))
    validates = is_held_back(positions)
    epoch_batches, steps = workspace.training_batches(
        seed, batch_size, share=share, role="calibration", positions=positions[~validates]
    )
    return (
        lambda epoch: _without_labels(epoch_batches(epoch)),
        steps,
        lambda: _without_labels(workspace.batches("calibration", positions=positions[validates], share=share)),
    )


def _without_labels(batches: Iterable[tuple[Tensor, Tensor]]) -> Batches:
    return ((images, None) for images, _ in batches)
