"""Base of tasks with a label at every position: segmentation and language modelling."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from cleanai_ray.tasks.base import Task


class DenseLabels(Task):
    """A task with logits [N, classes, ...] and labels [N, ...], some of which can be ignored.

    Attributes:
        ignore_index: The label of positions that are ignored.
    """

    ignore_index: int

    def loss(self, outputs: Any, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Return the cross-entropy, the mean over positions that are not ignored."""
        return self.cross_entropy(self.logits(outputs), targets, label_smoothing)

    def network_loss(self, network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy of the network's first output."""
        outputs = network(inputs)
        return self.cross_entropy(outputs if isinstance(outputs, Tensor) else outputs[0], targets)

    def cross_entropy(self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Return the cross-entropy of logits [N, classes, ...], the mean over positions that are not ignored."""
        return functional.cross_entropy(
            logits.float(), targets, ignore_index=self.ignore_index, label_smoothing=label_smoothing
        )

    def hits(self, outputs: Any, targets: Tensor) -> Tensor:
        """Return the sum over samples of the share of positions whose label is right."""
        counts = targets != self.ignore_index
        right = (self.logits(outputs).detach().argmax(1) == targets) & counts
        return (right.flatten(1).sum(1) / counts.flatten(1).sum(1).clamp_min(1)).sum()
