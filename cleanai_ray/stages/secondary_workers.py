"""The work of a trial's secondary processes: to train and score together with the first, which runs the stages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from cleanai_ray.config.study import Trial
from cleanai_ray.errors import CleanAIError
from cleanai_ray.evaluation.kept_logits import KeptLogits
from cleanai_ray.stages.finetune import fine_tune_part
from cleanai_ray.stages.scores import ShareScore, score_share
from cleanai_ray.stages.workspace import Workspace
from cleanai_ray.training.part import ScoringPart
from cleanai_ray.training.processes import ProcessGroupContext


def assist_trial(
    workspace: Workspace,
    trial: Trial,
    dense: nn.Module,
    dense_logits: KeptLogits,
    context: ProcessGroupContext,
    note: Callable[[], None] = lambda: None,
) -> None:
    """Join the first process in each fine-tuning and scoring, until it dismisses the others.

    Args:
        workspace: The opened study.
        trial: The cell of the sweep.
        dense: The dense model on the workspace's device; it is not changed.
        dense_logits: Its logits on the evaluation samples.
        context: This process among those of the trial.
        note: Called after each scoring, to record the samples that could not be read; an error that it raises is raised
            in the first process.
    """
    share = context.rank, context.world_size

    def score(model: nn.Module, part: ScoringPart) -> ShareScore | None:
        found = score_share(workspace, dense_logits, model, part, share)
        note()
        return found

    while (task := context.await_part()) is not None:
        model, part = task
        if isinstance(part, ScoringPart):
            context.contribute(partial(score, model, part))
        else:
            try:
                fine_tune_part(workspace, trial, model, dense, context, part)
            except CleanAIError as error:  # if of all processes, the first one reports it
                if not error.in_all_processes:
                    raise
