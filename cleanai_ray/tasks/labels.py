"""Labels of a classifier in the forms that loaders give them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cleanai_ray.errors import EvaluationError


def labels_of(targets: Any, num_classes: int) -> Tensor:
    """Return labels as cross-entropy takes them: classes [N], int64, or probabilities [N, classes], float32.

    Args:
        targets: Classes [N] or [N, 1] of any integer type, or one-hot rows or probabilities [N, classes].
        num_classes: Outputs of the classifier.

    Raises:
        EvaluationError: When they have another form.
    """
    if isinstance(targets, Tensor):
        of_classes = not targets.is_floating_point() and not targets.is_complex() and targets.dtype is not torch.bool
        if of_classes and targets.dim() == 1:
            return targets.long()
        if targets.dim() == 2 and targets.shape[1] == num_classes and num_classes > 1:
            return targets.float()
        if of_classes and targets.dim() == 2 and targets.shape[1] == 1:
            return targets[:, 0].long()
    found = f"{targets.dtype} of shape {list(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
    raise EvaluationError(f"labels are {found}; allowed: classes [N], or probabilities [N, {num_classes}]")


def classes_of(targets: Any, num_classes: int) -> Tensor:
    """Return labels as classes [N]; of probabilities, the most likely one. Arguments and errors as for `labels_of`."""
    labels = labels_of(targets, num_classes)
    return labels if labels.dim() == 1 else labels.argmax(1)
