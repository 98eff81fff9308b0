"""Scores of models of tasks other than classification, on all evaluation samples and by their role.

One process scores: sums over shares exist for some tasks only, and no single answers are kept, so that such a model is
compared with the dense one by their scores alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn

from cleanai_ray.errors import EvaluationError
from cleanai_ray.evaluation.kept_logits import KeptLogits
from cleanai_ray.nn.hooks import require_no_hooks
from cleanai_ray.nn.modes import evaluation_mode, to_device
from cleanai_ray.stages.workspace import Workspace
from cleanai_ray.storage.image_schemas import TEST, VALIDATION, roles_of_images
from cleanai_ray.tasks.base import Scorer
from cleanai_ray.tasks.score import NoLabelError, TaskScore

_ALL = ""


def score_task_model(workspace: Workspace, model: nn.Module, *, chooses: bool = True) -> tuple[TaskScore, KeptLogits]:
    """Return a model's score on the evaluation samples, and the numbers of the samples, without any logits.

    The score has those by role beside it, unless one of the roles has no sample, or none with a label to score by.

    Args:
        workspace: The opened study.
        model: The model, or its network, on the workspace's device.
        chooses: False to leave out samples of another split that choose, so that there are no scores by role.

    Raises:
        EvaluationError: When there is no sample, or none with a label to score by, the score is not a number, or the
            output does not fit the task.
    """
    task, device = workspace.task, workspace.device
    model = task.restored(model)
    require_no_hooks(model)
    share = workspace.study.evaluation.deciding_share
    scorers = {role: task.new_scorer() for role in (_ALL, VALIDATION, TEST)}
    counts = dict.fromkeys(scorers, 0)
    numbers: list[np.ndarray] = []
    others = workspace.selection_batches() if chooses else ()
    with evaluation_mode(model), torch.no_grad():
        for batch, inputs, targets in chain(workspace.scored_batches(), others):
            targets = to_device(targets, device)
            predicted = task.predict(model, to_device(inputs, device), targets)
            numbers.append(batch.numpy())
            for role, chosen in _places(batch.numpy(), share).items():
                if len(chosen):
                    scorers[role].add(*task.chosen(predicted, targets, chosen.tolist()))
                    counts[role] += len(chosen)
    if not counts[_ALL]:
        raise EvaluationError("there are 0 samples to evaluate on, at least 1 is needed")
    try:
        found = _result(scorers[_ALL])
    except NoLabelError as error:
        raise NoLabelError(f"the evaluation samples have no score: {error}") from error
    if counts[VALIDATION] and (counts[TEST] or share is None):
        with suppress(NoLabelError):  # a role without a label has no score, as one without samples
            tested = found if share is None else _result(scorers[TEST])
            found = replace(found, by_role={VALIDATION: _result(scorers[VALIDATION]), TEST: tested})
    order = np.sort(np.concatenate(numbers))
    return found, KeptLogits(numbers=order, values=np.zeros((len(order), 0), dtype=np.float32))


def _places(numbers: np.ndarray, share: float | None) -> dict[str, np.ndarray]:
    """Return the places in a batch of the samples of each scorer; all reported ones are tested if others decide."""
    decides = roles_of_images(numbers, share)
    if share is None:
        return {_ALL: np.flatnonzero(~decides), VALIDATION: np.flatnonzero(decides)}
    return {_ALL: np.arange(len(decides)), VALIDATION: np.flatnonzero(decides), TEST: np.flatnonzero(~decides)}


def _result(scorer: Scorer) -> TaskScore:
    found = scorer.result()
    if isinstance(found, TaskScore):
        return found
    return TaskScore(found.metric_name, found.value, found.merit, found.loss, found.num_samples)


def task_columns(dense: TaskScore, last: TaskScore) -> dict[str, Any]:
    """Return the columns of results.parquet that only tasks other than classification have, and those by role.

    Args:
        dense: The dense model's score.
        last: The score of the trial's model after the last stage.
    """
    columns: dict[str, Any] = {"score_dense": _finite(dense.value), "score": _finite(last.value)}
    for role in (VALIDATION, TEST) if dense.by_role and last.by_role else ():
        before, after = dense.by_role[role], last.by_role[role]
        columns |= {f"accuracy_{role}": after.merit, f"accuracy_{role}_dense": before.merit}
        columns |= {f"score_{role}": _finite(after.value), f"score_{role}_dense": _finite(before.value)}
        columns[f"num_{role}"] = after.num_samples
    return columns


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def class_rows(dense: TaskScore, last: TaskScore) -> list[dict[str, Any]]:
    """Return the rows of classes.parquet, without the trial: the score of each class that occurs, the worst first.

    They are of the samples that are reported on: of those that decide nothing, where some were set aside.
    """
    if dense.by_role and last.by_role:
        dense, last = dense.by_role[TEST], last.by_role[TEST]
    rows = []
    for label, (before, after) in enumerate(zip(dense.parts, last.parts, strict=False)):
        if before is not None and after is not None:
            row = {"label": label, "num_evaluated": last.num_samples, "accuracy_dense": before, "accuracy": after}
            rows.append({**row, "change": after - before})
    return sorted(rows, key=lambda row: (row["change"], row["label"]))


def history_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of a training's history with the columns of history.parquet: of other tasks, the score's merit."""
    if "validation_merit" not in row:
        return dict(row)
    known = {name: value for name, value in row.items() if not name.startswith("validation_")}
    kept = {"validation_loss": row["validation_loss"], "validation_accuracy": row["validation_merit"]}
    return {**known, "train_accuracy": None, **kept}
