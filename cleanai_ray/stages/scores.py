"""Scores of the dense model and of a trial's model after its stages, and the comparison of the two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial, reduce
from itertools import chain
from operator import add
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from cleanai_ray.data import Share
from cleanai_ray.errors import EvaluationError
from cleanai_ray.evaluation.comparison import ClassifierScorer, Comparison
from cleanai_ray.evaluation.hits import Hits, HitsKeeper
from cleanai_ray.evaluation.kept_logits import KeptLogits, LogitsKeeper
from cleanai_ray.evaluation.one_pass import NumberedBatch, run_over
from cleanai_ray.nn.batch_limit import process_limit
from cleanai_ray.stages.task_scores import score_task_model
from cleanai_ray.stages.workspace import Workspace
from cleanai_ray.tasks.accuracy import Accuracy
from cleanai_ray.tasks.score import TaskScore
from cleanai_ray.training.context import TrainingContext
from cleanai_ray.training.part import ScoringPart


@dataclass(frozen=True)
class StageScore:
    """A model's score on the evaluation samples.

    Attributes:
        accuracy: The score.
        comparison: The comparison with the dense model, if there is one.
        hits: The images that the model gets right, if it is compared.
    """

    accuracy: Accuracy | TaskScore
    comparison: Comparison | None = None
    hits: Hits | None = None


@dataclass(frozen=True)
class ShareScore:
    """What one process finds on its share of the samples. The scores of two shares add up: `a + b`.

    Attributes:
        accuracy: The score on its evaluation samples; None if it could read none of them.
        comparison: The comparison with the dense model on these, if there is one.
        hits: The images that the model gets right, also among those that choose, if it is compared.
    """

    accuracy: Accuracy | TaskScore | None
    comparison: Comparison | None = None
    hits: Hits | None = None

    def __add__(self, other: ShareScore) -> ShareScore:
        """Return the score on both shares together."""
        accuracy = other.accuracy if self.accuracy is None else self.accuracy
        if self.accuracy is not None and other.accuracy is not None:
            assert isinstance(self.accuracy, Accuracy)
            assert isinstance(other.accuracy, Accuracy), "one process scores models of other tasks"
            accuracy = self.accuracy + other.accuracy
        return ShareScore(accuracy, _sum(self.comparison, other.comparison), _sum(self.hits, other.hits))

    def whole(self) -> StageScore:
        """Return the score of all shares together.

        Raises:
            EvaluationError: When there is no image to score.
        """
        if self.accuracy is None:
            raise EvaluationError("there are 0 images to evaluate on, at least 1 is needed")
        return StageScore(self.accuracy, self.comparison, self.hits)


_Part = TypeVar("_Part", Comparison, Hits)


def _sum(one: _Part | None, other: _Part | None) -> _Part | None:
    """Return the sum of what is there."""
    if one is None or other is None:
        return one if other is None else other
    return one + other


def score_dense(workspace: Workspace, model: nn.Module) -> tuple[Accuracy | TaskScore, KeptLogits]:
    """Return the dense model's score on the evaluation samples, and its logits, from one pass.

    There are logits of the samples of another split that choose, too, if there are any; the score is not of these.
    Of other tasks than classification, no logits are kept.

    Args:
        workspace: The opened study.
        model: The dense model.

    Raises:
        EvaluationError: When there is no image to score.
    """
    if not workspace.study.task.is_classification:
        return process_limit.within_memory(partial(score_task_model, workspace, model), "scoring")

    def score() -> tuple[ClassifierScorer, LogitsKeeper]:
        roles = workspace.roles
        scorer, keeper = ClassifierScorer(), LogitsKeeper(len(roles.evaluation) + len(roles.selection))

        def receive(numbers: Tensor, logits: Tensor, labels: Tensor) -> None:
            if _are_reported(numbers):
                scorer.add(numbers, logits, labels)
            keeper.add(numbers, logits, labels)

        batches = chain(workspace.scored_batches(), workspace.selection_batches())
        _run_over(workspace, model, batches, receive)
        return scorer, keeper

    scorer, keeper = process_limit.within_memory(score, "scoring")
    found = scorer.result()
    if found is None:
        raise EvaluationError("there are 0 images to evaluate on, at least 1 is needed")
    return found[0], keeper.result()


def score_share(
    workspace: Workspace, dense: KeptLogits, model: nn.Module, part: ScoringPart, share: Share
) -> ShareScore | None:
    """Score a model on this process's share of the evaluation samples; None if it has none.

    Every process gets consecutive whole batches, so that the batches are the same for any number of processes. Images
    that the dense model's process could not read are left out, so that both models are scored on the same ones. Of the
    samples of another split that choose, it is only kept which the model gets right, and only if models are compared;
    they are shared out likewise, and count whether or not the process can read any of its evaluation samples.

    Args:
        workspace: The opened study.
        dense: The dense model's logits on the evaluation samples.
        model: The model.
        part: Says whether the two models are compared.
        share: Rank of this process, and the number of processes.
    """
    score = partial(_score_share, workspace, dense, model, part, share)
    return process_limit.within_memory(score, "scoring")


def _score_share(
    workspace: Workspace, dense: KeptLogits, model: nn.Module, part: ScoringPart, share: Share
) -> ShareScore | None:
    rank, world_size = share
    if not workspace.study.task.is_classification:
        return None if rank else ShareScore(score_task_model(workspace, model, chooses=part.compares)[0])
    size = workspace.study.data.batch_size
    positions = _share_of(len(workspace.roles.evaluation), size, share)
    if not len(positions):
        return None
    batches = workspace.scored_batches(positions)
    if part.compares:
        # Processes without evaluation samples return nothing, so the others share these out.
        num_busy = min(world_size, -(-len(workspace.roles.evaluation) // size))
        choosing = _share_of(len(workspace.roles.selection), size, (rank, num_busy))
        batches = chain(batches, workspace.selection_batches(choosing))
    scorer, keeper = ClassifierScorer(dense if part.compares else None), HitsKeeper()

    def receive(numbers: Tensor, logits: Tensor, labels: Tensor) -> None:
        if _are_reported(numbers):
            scorer.add(numbers, logits, labels)
        if part.compares:
            keeper.add(numbers, logits, labels)

    _run_over(workspace, model, _in_both(dense, batches), receive)
    accuracy, comparison = scorer.result() or (None, None)
    return ShareScore(accuracy, comparison, keeper.result() if part.compares else None)


def _share_of(number: int, batch_size: int, share: Share) -> np.ndarray:
    """Return the places of a process's share of samples: consecutive whole batches."""
    rank, world_size = share
    own = np.array_split(np.arange(0, number, batch_size), world_size)[rank]
    return np.arange(number)[own[0] : own[-1] + batch_size] if len(own) else np.empty(0, dtype=np.int64)


def _are_reported(numbers: Tensor) -> bool:
    """Return whether the samples of a batch are of the evaluated split, and so count in scores."""
    return bool((numbers >= 0).all())


def _run_over(
    workspace: Workspace,
    model: nn.Module,
    batches: Iterator[NumberedBatch],
    receive: Callable[[Tensor, Tensor, Tensor], None],
) -> None:
    run_over(model, batches, receive, device=workspace.device, precision=workspace.study.evaluation.precision)


def _in_both(dense: KeptLogits, batches: Iterator[NumberedBatch]) -> Iterator[NumberedBatch]:
    """Yield batches without the samples that the dense model has no logits of."""
    for numbers, images, labels in batches:
        _, are_there = dense.places_of(numbers)
        if are_there.all():
            yield numbers, images, labels
        elif are_there.any():
            kept = torch.from_numpy(are_there)
            on_device = kept.to(images.device)
            yield numbers[kept], images[on_device], labels[on_device]


def score_model(
    workspace: Workspace, dense: KeptLogits, model: nn.Module, context: TrainingContext, *, compares: bool
) -> StageScore:
    """Score a model on the evaluation samples, shared between the processes of a trial.

    Args:
        workspace: The opened study.
        dense: The dense model's logits on the evaluation samples.
        model: The model.
        context: The processes that score.
        compares: True to compare it with the dense model.

    Raises:
        EvaluationError: When there is no image to score.
    """
    part = ScoringPart(compares=compares)
    work = partial(score_share, workspace, dense, model, part, (context.rank, context.world_size))
    own = workspace.task.restored(model)  # a view of it cannot travel to other processes
    shares = [share for share in context.gather(own, part, work) if share is not None]
    return reduce(add, shares, ShareScore(None)).whole()
