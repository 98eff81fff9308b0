"""Top-1 and top-5 accuracy and cross-entropy of a classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from cleanai_ray.evaluation.scoring import score
from cleanai_ray.tasks.accuracy import Accuracy
from cleanai_ray.tasks.classification import Classification


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    device: torch.device | str = "cpu",
    all_reduce: Callable[[Tensor], Tensor] | None = None,
) -> Accuracy:
    """Score a classifier in evaluation mode, and put every module back in the mode it was in.

    Args:
        model: Maps images [N, ...] to logits [N, classes]. It is moved to the device.
        batches: Pairs of images and labels [N]; the last batch may be smaller.
        device: Where to compute.
        all_reduce: Sums a tensor over processes that each score a part of the samples.

    Raises:
        EvaluationError: When a hook is left on the model, there is no sample, or the output is not [N, classes].
    """
    found = score(model, batches, task=Classification(), device=device, all_reduce=all_reduce)
    assert isinstance(found, Accuracy)
    return found


__all__ = ["Accuracy", "evaluate"]
