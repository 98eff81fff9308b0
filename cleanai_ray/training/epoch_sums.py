"""Sums over the training batches of an epoch, on the device until the epoch ends."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cleanai_ray.training.context import TrainingContext, TrainingError

_CHECK_EVERY = 100
"""Steps between checks of the loss; on CUDA they look at the sums of the check before, to wait for nothing."""


@dataclass(frozen=True)
class EpochSums:
    """Results of an epoch's training batches, over all processes.

    Attributes:
        loss: Mean training loss.
        accuracy: Share of right answers while the batches were trained on; None where the task counts none.
        num_images: Images.
        learning_rate: Learning rate of the last step.
    """

    loss: float
    accuracy: float | None
    num_images: int
    learning_rate: float


class RunningSums:
    """The sums while the epoch runs.

    Args:
        epoch: Its number, for messages.
        context: Device and other processes.
        start: The sums of a part of the epoch that has run before, [3].

    Attributes:
        values: Sum of losses, hits and samples of this process, float64 [3].
    """

    def __init__(self, epoch: int, context: TrainingContext, start: Tensor | None = None) -> None:
        self._epoch = epoch
        self._context = context
        zeros = torch.zeros(3, dtype=torch.float64)
        self.values = (zeros if start is None else start).to(context.device, copy=True)
        self._earlier: tuple[Tensor, torch.cuda.Event] | None = None

    def add(self, step: Tensor, done: int, rate: float) -> None:
        """Add the sums of a step; now and then, check that the loss is finite.

        Raises:
            TrainingError: When it is not.
        """
        self.values += step
        if done % _CHECK_EVERY == 0:
            self._check(rate)

    def result(self, rate: float) -> EpochSums:
        """Return the sums over all processes; this waits for the device.

        Raises:
            TrainingError: When the loss is not finite.
        """
        loss, hits, num_images = self._required_finite(self._total(), rate).tolist()
        accuracy = None if math.isnan(hits) else hits / num_images
        return EpochSums(loss / num_images, accuracy, int(num_images), rate)

    def _check(self, rate: float) -> None:
        total = self._total()
        if total.device.type != "cuda":
            self._required_finite(total, rate)
            return
        if self._earlier is not None:
            values, copied = self._earlier
            copied.synchronize()  # it was copied many steps ago
            self._required_finite(values, rate)
        pinned, event = torch.empty(3, dtype=torch.float64, pin_memory=True), torch.cuda.Event()
        pinned.copy_(total, non_blocking=True)
        event.record()
        self._earlier = pinned, event

    def _total(self) -> Tensor:
        return self._context.all_reduce(self.values.clone())

    def _required_finite(self, total: Tensor, rate: float) -> Tensor:
        if not total[0].isfinite().item():
            raise TrainingError(
                f"the training loss of epoch {self._epoch} is not finite at a learning rate of {rate:g}: "
                "lower finetune.learning_rate, or set finetune.gradient_clip or finetune.warmup_epochs"
            )
        return total
