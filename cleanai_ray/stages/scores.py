"""What a trial's model scores after each stage, and how it compares with the dense model after the last."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial, reduce
from itertools import chain
from operator import add
from typing import Any

import numpy as np
from torch import nn

from cleanai_ray.data import Share
from cleanai_ray.errors import EvaluationError
from cleanai_ray.evaluation.accuracy import Accuracy, evaluate
from cleanai_ray.evaluation.cached_model import CachedModel
from cleanai_ray.evaluation.comparison import Comparison, compare
from cleanai_ray.stages.clock import TrialClock
from cleanai_ray.stages.columns import accuracy_columns, comparison_columns
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
    return StageScore(*compare(CachedModel(dense), model, batches, device=workspace.device))


class TrialScores:
    """Scores a trial's model after each stage that runs: `pruned`, `repaired`, `finetuned` and `quantized`.

    After the last one the dense model is run beside it, on the same batches, which are read and decoded once. The
    processes of a trial share the samples out.

    Args:
        workspace: The opened study, which says what stages there are.
        dense: The dense model on the workspace's device; it is not changed.
        clock: Told of the time.
        context: The processes that score.
        is_compared: Whether the last model in float is compared, too.
    """

    def __init__(
        self,
        workspace: Workspace,
        dense: nn.Module,
        clock: TrialClock,
        context: TrainingContext,
        is_compared: bool = True,
    ) -> None:
        study = workspace.study
        ahead = {"pruned": True, "repaired": study.repair.is_on, "finetuned": study.finetune.epochs > 0}
        last = [name for name, runs in ahead.items() if runs][-1]
        self._compared = {"quantized", *([last] if is_compared else [])}
        self._workspace = workspace
        self._dense = dense
        self._clock = clock
        self._context = context
        self._scores: dict[str, Accuracy] = {}
        self._comparison: Comparison | None = None

    def branch(self, clock: TrialClock) -> TrialScores:
        """Return the scores so far, to go on from here by themselves, with a clock of their own."""
        scores = copy.copy(self)
        scores._clock, scores._scores = clock, dict(self._scores)
        return scores

    def add(self, stage: str, model: nn.Module) -> None:
        """Score the model after a stage."""
        context, part = self._context, ScoringPart(compares=stage in self._compared)
        work = partial(score_share, self._workspace, self._dense, model, part, (context.rank, context.world_size))
        with self._clock.stage("evaluate"):
            shares = [share for share in context.gather(model, part, work) if share is not None]
        if not shares:
            raise EvaluationError("there are 0 images to evaluate on, at least 1 is needed")
        score = reduce(add, shares)
        self._scores[stage], self._comparison = score.accuracy, score.comparison

    @property
    def comparison(self) -> Comparison:
        """The model after the last stage beside the dense one."""
        assert self._comparison is not None, f"none of {self._compared} has been scored"
        return self._comparison

    def columns(self, dense: Accuracy) -> dict[str, Any]:
        """Return the columns of results.parquet about accuracy, given what the dense model scores."""
        classes = self._workspace.study.model.num_classes
        return {**accuracy_columns(dense, self._scores), **comparison_columns(self.comparison, classes)}
