"""Metrics as users write them: functions and objects, of which several processes can merge some."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor


def balanced(predicted: Tensor, targets: Tensor) -> float:
    """Mean over classes of the share of right answers: no mean over samples, so that shares cannot be averaged."""
    found = predicted.argmax(1)
    return sum(float((found[targets == c] == c).float().mean()) for c in targets.unique()) / len(targets.unique())


def share_of_zeros(predicted: Tensor, targets: Tensor) -> float:
    """Share of targets that are 0."""
    return float((targets == 0).double().mean())


def failing(predicted: Tensor, targets: Tensor) -> float:
    """Fails when all processes have collected."""
    raise ValueError("no such thing")


class Counted:
    """Right answers of each class."""

    def __init__(self) -> None:
        self.counts: dict[int, tuple[int, int]] = {}

    def update(self, predicted: Tensor, targets: Tensor) -> None:
        for found, target in zip(predicted.argmax(1).tolist(), targets.tolist(), strict=True):
            right, number = self.counts.get(target, (0, 0))
            self.counts[target] = right + (found == target), number + 1

    def compute(self) -> float:
        return sum(right / number for right, number in self.counts.values()) / len(self.counts)


class Merging(Counted):
    """The same, for several processes."""

    def merge_state(self, others: list[Merging]) -> None:
        for other in others:
            for target, (right, number) in other.counts.items():
                known = self.counts.get(target, (0, 0))
                self.counts[target] = known[0] + right, known[1] + number


class Unmergeable(Merging):
    """Its merge fails."""

    def merge_state(self, others: list[Merging]) -> None:
        raise ValueError("no such thing")


class Failing(Merging):
    """Fails in the process whose batch it is."""

    def update(self, predicted: Tensor, targets: Tensor) -> None:
        raise ValueError("no such thing")


def library() -> Any:
    """The same by torchmetrics, whose metrics wait for all of torch's processes if nobody tells them not to."""
    from torchmetrics.classification import MulticlassAccuracy

    return MulticlassAccuracy(num_classes=3, average="macro")


def derived(said: bool | None, synchronises: bool = False, merges: bool = False) -> Any:
    """A user's subclass of torchmetrics' Metric, which may say that it needs no full state, or have its own merge."""
    import torch
    from torchmetrics import Metric

    class Derived(Metric):
        full_state_update = said

        def __init__(self) -> None:
            super().__init__(dist_sync_on_step=synchronises)
            self.add_state("right", torch.zeros(()), dist_reduce_fx="sum")

        def update(self, predicted: Tensor, targets: Tensor) -> None:
            self.right += (predicted.argmax(1) == targets).sum()

        def compute(self) -> Tensor:
            return self.right

    class OfItsOwn(Derived):
        def merge_state(self, incoming_state: Any) -> None:
            self.right += incoming_state.right

    return OfItsOwn() if merges else Derived()


@cache
def batch_sizes() -> type:
    """Return a metric: a tenth of the mean number of samples of a batch, brought up to date at each."""
    import torch
    from torchmetrics import Metric

    class BatchSize(Metric):
        full_state_update = False

        def __init__(self) -> None:
            super().__init__()
            self.add_state("mean", torch.zeros(()), dist_reduce_fx="mean")

        def update(self, predicted: Tensor, targets: Tensor) -> None:
            self.mean = self.mean + (len(targets) - self.mean) / self._update_count

        def compute(self) -> Tensor:
            return self.mean / 10

    BatchSize.__qualname__ = "BatchSize"
    globals()["BatchSize"] = BatchSize  # where pickle looks for it
    return BatchSize


def batch_size() -> Any:
    """A tenth of the mean number of samples of a batch."""
    return batch_sizes()()


def plain_library() -> Any:
    """A subclass as most write it, which torchmetrics does not merge."""
    return derived(said=None)
