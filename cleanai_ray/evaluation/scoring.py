"""Scoring of a model on labelled samples, as its task defines it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.errors import EvaluationError
from cleanai_ray.nn.hooks import require_no_hooks
from cleanai_ray.nn.modes import evaluation_mode, to_device
from cleanai_ray.statistics.batch_forms import pair_of
from cleanai_ray.tasks.base import Score, Task, find_task


def score(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Any]],
    *,
    task: str | Task = "classification",
    device: torch.device | str = "cpu",
    all_reduce: Callable[[Tensor], Tensor] | None = None,
) -> Score:
    """Score a model in evaluation mode, and put every module back in the mode it was in.

    Args:
        model: A model of the task. It is moved to the device.
        batches: Pairs of inputs and targets, as the task defines them, or dicts with both; the last batch may be
            smaller.
        task: What the model is for: a name of `cleanai_ray.registry.TASKS`, or a task.
        device: Where to compute.
        all_reduce: Sums a tensor over processes that each score a part of the samples.

    Raises:
        RegistryError: When the task is unknown.
        EvaluationError: When a hook is left on the model, there is no sample, or the output does not fit the task.
    """
    task = find_task(task)
    require_no_hooks(model)
    device = torch.device(device)
    model.to(device)
    scorer = task.new_scorer()
    with evaluation_mode(model), torch.no_grad():
        for batch in batches:
            inputs, targets = pair_of(batch, EvaluationError)
            targets = to_device(targets, device)
            scorer.add(task.predict(model, to_device(inputs, device), targets), targets)
        return scorer.result(all_reduce)
