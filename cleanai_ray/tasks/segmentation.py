"""Semantic segmentation: a class for every pixel.

torchmetrics is not used for the mean intersection over union: its MeanIoU averages scores of single images, and its
MulticlassJaccardIndex divides in float32, in which counts of pixels above 2^24 are not exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cleanai_ray.errors import EvaluationError
from cleanai_ray.nn.view import as_model, as_network, own_forward
from cleanai_ray.registry import TASKS
from cleanai_ray.tasks.base import Reduce, Scorer
from cleanai_ray.tasks.dense_labels import DenseLabels
from cleanai_ray.tasks.score import NoLabelError, TaskScore

_IGNORED = 255
_AUXILIARY_WEIGHT = 0.5


class MeanIoU(Scorer):
    """Mean over classes of intersection over union, and the cross-entropy, from sums on the device."""

    def __init__(self) -> None:
        self._confusion: Tensor | None = None
        self._loss: Tensor | None = None
        self._num_samples = 0

    def add(self, predicted: Tensor, targets: Tensor) -> None:
        """Add a batch: logits [N, classes, H, W] and labels [N, H, W]; 255 is ignored."""
        number = predicted.shape[1]
        counts = targets != _IGNORED
        pairs = number * targets[counts] + predicted.argmax(1)[counts]
        confusion = torch.bincount(pairs, minlength=number**2).reshape(number, number)
        loss = functional.cross_entropy(predicted.float(), targets, ignore_index=_IGNORED, reduction="sum").double()
        self._confusion = confusion if self._confusion is None else self._confusion + confusion
        self._loss = loss if self._loss is None else self._loss + loss
        self._num_samples += len(targets)

    def result(self, all_reduce: Reduce | None = None) -> TaskScore:
        """Return the mean over the classes that occur in the labels or in the answers."""
        if self._confusion is None or self._loss is None:
            raise EvaluationError("there are 0 batches to evaluate on, at least 1 is needed")
        number = len(self._confusion)
        samples = torch.full_like(self._loss, self._num_samples)
        sums = torch.cat([torch.stack([self._loss, samples]), self._confusion.flatten().double()])
        loss, num_samples, *counts = (sums if all_reduce is None else all_reduce(sums)).tolist()
        confusion = torch.tensor(counts, dtype=torch.float64).reshape(number, number)
        hits = confusion.diagonal()
        union = confusion.sum(0) + confusion.sum(1) - hits
        if not confusion.any():
            raise NoLabelError(f"all pixels have the label {_IGNORED}, which is ignored; at least 1 other is needed")
        parts = tuple(float(hit / of) if of else None for hit, of in zip(hits, union, strict=True))
        present = [part for part in parts if part is not None]
        mean = sum(present) / len(present)
        return TaskScore("mIoU", mean, mean, loss / float(confusion.sum()), int(num_samples), parts)


def _maps(network: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    outputs = own_forward(network)(images)
    return tuple(outputs.values()) if isinstance(outputs, dict) else (outputs,)


@TASKS.register("segmentation")
class Segmentation(DenseLabels):
    """Semantic segmentation: labels [N, H, W], 255 for pixels to ignore; cross-entropy and mIoU.

    A model maps images [N, C, H, W] to logits [N, classes, H, W], or to a dict whose "out" they are, as torchvision's
    do. A second entry, "aux", adds half its cross-entropy to the loss.
    """

    name = "segmentation"
    metric_name = "mIoU"
    ignore_index = _IGNORED

    def network(self, model: nn.Module) -> nn.Module:
        """Return a view of the model that returns a tuple of logits."""
        return as_network(model, _maps)

    def restored(self, network: nn.Module) -> nn.Module:
        """Return the model itself."""
        return as_model(network)

    def logits(self, outputs: Any) -> Tensor:
        """Return the logits [N, classes, H, W]."""
        logits: Tensor = outputs["out"] if isinstance(outputs, dict) else outputs
        return logits

    def loss(self, outputs: Any, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Return the cross-entropy, plus half the auxiliary one where there is one."""
        loss = super().loss(outputs, targets, label_smoothing)
        if isinstance(outputs, dict) and "aux" in outputs:
            loss = loss + _AUXILIARY_WEIGHT * self.cross_entropy(outputs["aux"], targets, label_smoothing)
        return loss

    def network_loss(self, network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the same loss of the network's outputs."""
        maps = [self.cross_entropy(logits, targets) for logits in network(inputs)]
        return maps[0] + _AUXILIARY_WEIGHT * sum(maps[1:])

    def predict(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the logits."""
        outputs = model(inputs)
        logits = outputs.get("out") if isinstance(outputs, dict) else outputs
        if not isinstance(logits, Tensor) or logits.ndim != 4 or logits.shape[2:] != targets.shape[1:]:
            found = list(logits.shape) if isinstance(logits, Tensor) else type(outputs).__name__
            expected = f"[{len(inputs)}, classes, {', '.join(map(str, targets.shape[1:]))}]"
            raise EvaluationError(f"the model's output is {found}, allowed is {expected}, or a dict whose 'out' it is")
        return logits

    def new_scorer(self) -> Scorer:
        """Return a scorer without samples."""
        return MeanIoU()
