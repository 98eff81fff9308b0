"""Methods and a model for which the hardware fails, as a plug-in module of a study."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from cleanai_ray.config.sections import ModelSection
from cleanai_ray.graph.graph import ChannelGroup
from cleanai_ray.importance.base import ImportanceMethod, ScoringContext
from cleanai_ray.models import build_model
from cleanai_ray.registry import METHODS


class _Asserting(ImportanceMethod):
    """Scores at random; the device fails in the first processes that ask, whose ids are noted in a file.

    Args:
        file: The file.
    """

    num_faults: int

    def __init__(self, file: str = "") -> None:
        self._file = Path(file)

    def score(self, group: ChannelGroup, context: ScoringContext) -> Tensor:
        """Return the number of each channel."""
        before = self._file.read_text().split() if self._file.exists() else []
        if not before or before[-1] != str(os.getpid()):
            self._file.write_text(" ".join([*before, str(os.getpid())]))
            before = [*before, str(os.getpid())]
        if len(before) <= self.num_faults:
            raise torch.AcceleratorError("CUDA error: device-side assert triggered")
        return torch.arange(float(group.num_channels))


@METHODS.register("asserting_once")
class AssertingOnce(_Asserting):
    """Fails in one process."""

    num_faults = 1


@METHODS.register("asserting")
class AssertingAlways(_Asserting):
    """Fails in every process."""

    num_faults = 100


class Hungry(nn.Module):
    """A ResNet-20 whose device holds a number of images at a time.

    Args:
        most: The number.
    """

    def __init__(self, most: int, network: nn.Module) -> None:
        super().__init__()
        self.most = most
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, classes]."""
        if len(images) > self.most:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(images)}.00 GiB.")
        return self.network(images)


def hungry(num_classes: int, most: int = 10**9) -> nn.Module:
    """Return a `Hungry` of the small study's images, the same at each call."""
    section = ModelSection(name="resnet20", num_classes=num_classes, input_shape=(1, 8, 8))
    torch.manual_seed(0)
    return Hungry(most, build_model(section))
