"""Scores of a trial's model after its stages, and the comparison with the dense model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial, reduce
from itertools import chain
from operator import add

import numpy as np
from torch import nn

from cleanai_ray.data import Share
from cleanai_ray.errors import EvaluationError
from cleanai_ray.evaluation.accuracy import Accuracy, evaluate
from cleanai_ray.evaluation.cached_model import CachedModel
from cleanai_ray.evaluation.comparison import Comparison, compare
from cleanai_ray.nn.batch_limit import process_limit
from cleanai_ray.stages.workspace import Workspace
from cleanai_ray.training.context import TrainingContext
from cleanai_ray.training.part import ScoringPart


@dataclass(frozen=True)
class StageScore:
    """A model's score on some of the evaluation samples. Scores on two shares of the samples add up: `a + b`.

    Attributes:
        accuracy: The score.
        comparison: The comparison with the dense model, if there is one.
    """

    accuracy: Accuracy
    comparison: Comparison | None = None

    def __add__(self, other: StageScore) -> StageScore:
        """Return the score on both shares together."""
        comparison = None
        if self.comparison is not None and other.comparison is not None:
            comparison = self.comparison + other.comparison
        return StageScore(self.accuracy + other.accuracy, comparison)


def score_share(
    workspace: Workspace, dense: nn.Module, model: nn.Module, part: ScoringPart, share: Share
) -> StageScore | None:
    """Score a model on this process's share of the evaluation samples; None if it holds no readable sample.

    Every process gets consecutive whole batches, so that the batches are the same for any number of processes. On the
    CPU, a process remembers the dense model's answers for its next trials.

    Args:
        workspace: The opened study.
        dense: The dense model on the workspace's device; it is not changed.
        model: The model.
        part: Says whether the two models are compared.
        share: Rank of this process, and the number of processes.
    """
    score = partial(_score_share, workspace, dense, model, part, share)
    return process_limit.within_memory(score, "scoring")


def _score_share(
    workspace: Workspace, dense: nn.Module, model: nn.Module, part: ScoringPart, share: Share
) -> StageScore | None:
    rank, world_size = share
    size, positions = workspace.study.data.batch_size, np.arange(len(workspace.roles.evaluation))
    own = np.array_split(np.arange(0, len(positions), size), world_size)[rank]
    if not len(own):
        return None
    batches = workspace.batches("evaluation", positions=positions[own[0] : own[-1] + size])
    first = next(batches, None)
    if first is None:
        return None
    batches = chain([first], batches)
    if not part.compares:
        return StageScore(accuracy=evaluate(model, batches, device=workspace.device))
    return StageScore(*compare(CachedModel(dense), model, batches, device=workspace.device))


def score_model(
    workspace: Workspace, dense: nn.Module, model: nn.Module, context: TrainingContext, *, compares: bool
) -> StageScore:
    """Score a model on the evaluation samples, shared between the processes of a trial.

    If it is compared with the dense model, both run on the same batches, which are read and decoded once.

    Args:
        workspace: The opened study.
        dense: The dense model on the workspace's device; it is not changed.
        model: The model.
        context: The processes that score.
        compares: True to compare it with the dense model.

    Raises:
        EvaluationError: When there is no image to score.
    """
    part = ScoringPart(compares=compares)
    work = partial(score_share, workspace, dense, model, part, (context.rank, context.world_size))
    shares = [share for share in context.gather(model, part, work) if share is not None]
    if not shares:
        raise EvaluationError("there are 0 images to evaluate on, at least 1 is needed")
    return reduce(add, shares)
