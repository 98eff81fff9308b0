"""What the other processes of a trial do, while the first one runs it."""

from __future__ import annotations

import contextlib
from functools import partial

from torch import nn

from cleanai_ray.recovery import fine_tune_trial
from cleanai_ray.study import Trial
from cleanai_ray.training.context import TrainingError
from cleanai_ray.training.part import ScoringPart
from cleanai_ray.training.processes import ProcessGroupContext
from cleanai_ray.trial_scores import score_share
from cleanai_ray.workspace import Workspace


def follow_trial(workspace: Workspace, trial: Trial, dense: nn.Module, context: ProcessGroupContext) -> None:
    """Fine-tune what the first process fine-tunes, and score a share of what it scores, until it dismisses the others.

    Args:
        workspace: The opened study.
        trial: The cell of the sweep.
        dense: The dense model on the workspace's device; it is not changed.
        context: This process among those of the trial.
    """
    share = context.rank, context.world_size
    while (task := context.await_part()) is not None:
        model, part = task
        if isinstance(part, ScoringPart):
            context.contribute(partial(score_share, workspace, dense, model, part, share))
        else:
            with contextlib.suppress(TrainingError):  # The first process has it, too, and tells of it.
                fine_tune_trial(workspace, trial, model, dense, context, part)
