"""The stage `finetune`: training of the smaller model, in one process or several."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from cleanai_ray.config.digests import digest
from cleanai_ray.config.start_of_training import start_judged_by_deciding_images, weights_are_foreign
from cleanai_ray.config.study import Study, Trial
from cleanai_ray.data import Share
from cleanai_ray.data.augment import random_mixture, sample_seeds
from cleanai_ray.nn.copying import copied
from cleanai_ray.registry import STAGES
from cleanai_ray.repair.images import is_held_back
from cleanai_ray.stages.base import Stage
from cleanai_ray.stages.state import TrialState
from cleanai_ray.stages.task_scores import history_row
from cleanai_ray.stages.train_anew import train_anew, with_random_weights
from cleanai_ray.stages.workspace import Workspace
from cleanai_ray.storage.image_schemas import roles_of_images
from cleanai_ray.training.context import TrainingContext
from cleanai_ray.training.data import Batches, TrainingData
from cleanai_ray.training.distillation import Supervision
from cleanai_ray.training.fine_tune import FineTuneResult, fine_tune
from cleanai_ray.training.part import TrainingPart


@STAGES.register("finetune")
class FineTune(Stage):
    """Fine-tune the model: at the end, and between pruning steps if `finetune.between_steps` says so.

    Each time is a training of its own, with its own schedule, early stopping and best epoch. A control that is trained
    anew gets random weights here, and the training of the dense model.
    """

    position = 300
    repeats = True
    scored_as = "finetuned"
    restarts = False
    timed_as = "finetune"

    @classmethod
    def applies(cls, study: Study, trial: Trial, step: int) -> bool:
        """Return whether the study fine-tunes after this step, or the trial is trained anew after its last one."""
        if trial.trains_anew:
            return step == trial.steps
        epochs = study.finetune.epochs if step == trial.steps else study.finetune.between_steps
        return epochs > 0

    @classmethod
    def key(cls, study: Study, trial: Trial) -> Any:
        """Return the recipe, the batch size for recipes that set none, and the seed."""
        recipe = [study.finetune.model_dump(mode="json"), study.data.batch_size, trial.seed]
        return [*recipe, study.model.model_dump(mode="json")] if trial.trains_anew else recipe

    def run(self, state: TrialState) -> TrialState:
        """Return the state with the fine-tuned model; unchanged if the last pruning step removed nothing."""
        if not state.removed_some:
            return state
        setting, part = self.setting, self._part(state)
        if self.trial.trains_anew:
            assert state.pruned is not None
            model = with_random_weights(setting.workspace, self.trial, state.pruned.result.plan)
        else:
            model = copied(state.model)
        # The model itself: its class, unlike that of the view that the task takes of it, is known to other processes.
        with setting.context.together(setting.workspace.task.restored(model), part):
            tuned = fine_tune_part(setting.workspace, self.trial, model, setting.dense_model, setting.context, part)
        best_epoch = tuned.best_epoch if self.is_last_step else state.best_epoch
        if tuned.epochs_run and not tuned.best_epoch and not self.trial.trains_anew:
            state = state.told([self._without_gain(state)])
        return replace(state, model=model, best_epoch=best_epoch, history=(*state.history, *tuned.history))

    def _without_gain(self, state: TrialState) -> str:
        """Return the warning of a trial in which no epoch was better than the weights before."""
        impartial = _is_start_impartial(self.setting.workspace.study)
        images = "the validation images" if impartial else "images that the given weights were not trained on"
        weights = "pruned" if state.repaired is None else "repaired"
        place = "" if self.is_last_step else f" after step {self.step} of {self.trial.steps}"
        key = "epochs" if self.is_last_step else "between_steps"
        return (
            f"fine-tuning{place}: no epoch was better on {images} than the {weights} weights, which were kept; "
            f"a lower finetune.learning_rate, or finetune.{key}: 0, may serve"
        )

    def _part(self, state: TrialState) -> TrainingPart:
        """Return the description of this training, one of several in a trial that fine-tunes between steps.

        Its name holds a digest of the removed channels, so that a model never resumes from the checkpoint of a model
        with other channels, nor, where a plug-in changed the model, from that of a model without this change.
        """
        assert state.pruned is not None
        is_only = not state.history and self.is_last_step
        name = "" if is_only else f"step{self.step}-{digest(state.pruned.result.plan.removed)}"
        if state.plugin_keys:
            name = "-".join(filter(None, [name, "plugins", digest(state.plugin_keys)]))
        return TrainingPart(
            name=name,
            step=self.step,
            epochs_before=len(state.history),
        )


def fine_tune_part(
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
        context: The context of this process.
        part: The description of this training; by default, of the one after the last pruning step.

    Returns:
        The outcome of the training; its history has the column `step`.
    """
    section, share = workspace.study.finetune, (context.rank, context.world_size)
    part = part or TrainingPart(step=trial.steps)
    if trial.trains_anew:
        return _at_step(train_anew(workspace, trial, model, teacher, context), part)
    if part.step < trial.steps:
        section = section.model_copy(update={"epochs": section.between_steps})
    task = workspace.task
    images = _labelled if section.data == "training" else _unlabelled
    train_batches, steps, validation_batches = images(workspace, trial.seed, section.batch_size, share)
    tuned = fine_tune(
        task.restored(model),  # which has the same weights
        section=section,
        data=TrainingData(
            train_batches=train_batches,
            later_batches=train_batches,
            steps_per_epoch=steps,
            validation_batches=validation_batches,
            start_competes=_is_start_impartial(workspace.study),
            unseen_batches=_unseen_batches(workspace, share),
        ),
        context=context,
        seed=trial.seed,
        supervision=Supervision(task=task, teacher=task.restored(teacher) if section.distillation else None),
        part=part,
    )
    return _at_step(tuned, part)


def _at_step(tuned: FineTuneResult, part: TrainingPart) -> FineTuneResult:
    return replace(tuned, history=tuple({**history_row(row), "step": part.step} for row in tuned.history))


def _is_start_impartial(study: Study) -> bool:
    """Return whether the model was made without the validation images before fine-tuning starts."""
    if study.finetune.data == "training":
        return not weights_are_foreign(study)
    # Repair may have read all of these images.
    return not study.repair.is_on or study.repair.holds_back


def _unseen_batches(workspace: Workspace, share: Share) -> Callable[[], Batches] | None:
    """Return a function that returns this process's batches of images that decide between the start and the best epoch.

    Where the start must not be judged by the validation images, the images that decide on the chosen trial judge it,
    if given weights have not been trained on them. None where there are none, or too few for the processes.
    """
    study, roles = workspace.study, workspace.roles
    if not start_judged_by_deciding_images(study):
        return None
    deciding_share = study.evaluation.deciding_share
    role = "selection" if deciding_share is None else "evaluation"
    indices = getattr(roles, role)
    decides = np.ones(len(indices), dtype=bool) if deciding_share is None else roles_of_images(indices, deciding_share)
    positions = np.flatnonzero(decides)
    if len(positions) < max(1, share[1]) or (decides.all() and deciding_share is not None):
        return None
    return workspace.validation_batches(share, role=role, positions=positions)


_ImageBatches = tuple[Callable[..., Batches], int, Callable[[], Batches]]
"""A function from an epoch, and a number of batches to leave out, to its training batches; their number; and a function
that returns validation batches."""


def _labelled(workspace: Workspace, seed: int, batch_size: int | None, share: Share) -> _ImageBatches:
    epoch_batches, steps = workspace.training_batches(seed, batch_size, share=share)
    return epoch_batches, steps, workspace.validation_batches(share)


def _unlabelled(workspace: Workspace, seed: int, batch_size: int | None, share: Share) -> _ImageBatches:
    """Return batches of calibration images: the images that repair holds back for validation, the rest for training."""
    positions = np.arange(len(workspace.roles.calibration))
    is_validation = is_held_back(positions)
    epoch_batches, steps = workspace.training_batches(
        seed, batch_size, share=share, role="calibration", positions=positions[~is_validation]
    )
    validation = workspace.validation_batches(share, role="calibration", positions=positions[is_validation])
    return (
        lambda epoch, done=0: _mixed(_without_labels(epoch_batches(epoch, done)), seed, epoch, done),
        steps,
        lambda: _without_labels(validation()),
    )


def _mixed(batches: Batches, seed: int, epoch: int, first: int) -> Batches:
    """Mix each image with another of its batch: what the mixture is, the dense model says."""
    for number, (images, _) in enumerate(batches, start=first):
        if images.is_floating_point():
            seeds = sample_seeds(int(digest([seed, epoch, number])[:8], 16), range(len(images)))
            images = random_mixture(images, seeds)
        yield images, None


def _without_labels(batches: Iterable[tuple[Tensor, Tensor]]) -> Batches:
    return ((images, None) for images, _ in batches)
