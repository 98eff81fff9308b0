"""Scores of a trial's model after its stages, and the comparison with the dense model after the last."""

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
from cleanai_ray.evaluation.comparison import Comparison, compare
from cleanai_ray.evaluation.remembered import RememberedModel
from cleanai_ray.stages.workspace import Workspace
from cleanai_ray.training.context import TrainingContext
from cleanai_ray.training.part import ScoringPart


@dataclass(frozen=True)
class StageScore:
    """What a model scores on some of the evaluation samples. Those of two shares of them add up: `a + b`.

    Attributes:
        accuracy: What it scores.
        comparison: How it compares with the dense model, where that is asked for.
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
    """Score a model on this process's share of the evaluation samples; None where there is none to be read.

    Every process gets whole batches that follow each other, so that batches are those of one process, whatever their
    number. On the CPU, a process's next trials find the dense model's answers remembered.

    Args:
        workspace: The opened study.
        dense: The dense model on the workspace's device; it is not changed.
        model: The model.
        part: Whether they are compared.
        share: Rank of this process and how many there are.
    """
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
    return StageScore(*compare(RememberedModel(dense), model, batches, device=workspace.device))


def score_model(
    workspace: Workspace, dense: nn.Module, model: nn.Module, context: TrainingContext, *, compares: bool
) -> StageScore:
    """Score a model on the evaluation samples, which the processes of a trial share out.

    Where it is compared with the dense model, both run on the same batches, which are read and decoded once.

    Args:
        workspace: The opened study.
        dense: The dense model on the workspace's device; it is not changed.
        model: The model.
        context: The processes that score.
        compares: Whether to compare it with the dense model.

    Raises:
        EvaluationError: When there is no image to score.
    """
    part = ScoringPart(compares=compares)
    work = partial(score_share, workspace, dense, model, part, (context.rank, context.world_size))
    shares = [share for share in context.gather(model, part, work) if share is not None]
    if not shares:
        raise EvaluationError("there are 0 images to evaluate on, at least 1 is needed")
    return reduce(add, shares)
