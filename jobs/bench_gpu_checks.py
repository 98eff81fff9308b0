"""What the sections of `bench_gpu.py` share: a line of its table, and the setting that all of them read."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cleanai_ray.config.sections import ModelSection
from cleanai_ray.models import build_model


class Check(NamedTuple):
    """One line of the table.

    Attributes:
        what: What was measured.
        value: The measurement; None if there is none on this device.
        unit: Its unit; "x" for a ratio.
        most: The most that it should be, or None.
        least: The least that it should be, or None.
        note: Where the value comes from.
    """

    what: str
    value: float | None
    unit: str = "x"
    most: float | None = None
    least: float | None = None
    note: str = ""

    def line(self, section: str) -> str:
        """Return the check as a line of the table."""
        bound = f"<= {self.most:g}" if self.most is not None else f">= {self.least:g}" if self.least is not None else ""
        value = "-" if self.value is None else f"{self.value:,.2f} {self.unit}"
        return f"{self.verdict():5} {section:12} {self.what:58} {value:>18} {bound:>9}  {self.note}".rstrip()

    def verdict(self) -> str:
        """Return `ok`, `SLOW` for a value beyond its bound, or `-` without a bound or a value."""
        if self.value is None or (self.most is None and self.least is None):
            return "-"
        too_much = self.most is not None and self.value > self.most
        too_little = self.least is not None and self.value < self.least
        return "SLOW" if too_much or too_little else "ok"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What every section reads.

    Attributes:
        device: Where to compute.
        small: True for toy sizes.
        executor: Runs the studies.
    """

    device: torch.device
    small: bool
    executor: str

    @property
    def section(self) -> ModelSection:
        """The network of the sections on the library: ResNet-50 at 224, or a toy."""
        if self.small:
            return ModelSection(name="resnet20", num_classes=10, input_shape=(3, 8, 8))
        return ModelSection(name="resnet50", num_classes=1000, input_shape=(3, 224, 224))

    @property
    def num_images(self) -> int:
        """Images of the sections on the library."""
        return 20 if self.small else 1024

    def network(self) -> nn.Module:
        """Return the network with random weights, in eval mode."""
        return build_model(self.section, seed=0).eval().to(self.device)

    def batches(self) -> list[Tensor]:
        """Return the images on the device, in batches."""
        size = 10 if self.small else 128
        generator = torch.Generator(self.device).manual_seed(0)
        shape = (size, *self.section.input_shape)
        return [torch.randn(shape, device=self.device, generator=generator) for _ in range(-(-self.num_images // size))]

    def seconds(self, work: Callable[[], Any]) -> float:
        """Return the seconds that something takes, until the device is done."""
        self._wait()
        started = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - started

    def ratio(self, work: Callable[[], Any], bare: Callable[[], Any], rounds: int = 2) -> float:
        """Return how many times as long as the bare pass something takes, in the order bare, work, work, bare."""
        work(), bare()
        found = []
        for _ in range(rounds):
            first, one, other, last = (self.seconds(each) for each in (bare, work, work, bare))
            found.append((one + other) / (first + last))
        return sorted(found)[len(found) // 2]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def forward(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Run a model over batches, and nothing else."""
    with torch.inference_mode():
        for images in batches:
            model(images)
