"""Memory of a pass at its peak, against what can be counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cleanai_ray.config.evaluation import LatencySection
from cleanai_ray.evaluation.latency import measure_latency
from cleanai_ray.evaluation.memory import peak_memory

WEIGHTS = 4 * (64 * 256 + 256 + 256 * 10 + 10)


class Passing(nn.Module):
    """Returns a tensor that is as large as it is told, and takes more meanwhile."""

    def __init__(self, kept: int, dropped: int) -> None:
        super().__init__()
        self.kept, self.dropped = kept, dropped

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first = torch.empty(self.dropped, dtype=torch.uint8)
        del first
        second = torch.empty(self.dropped, dtype=torch.uint8)
        del second
        return torch.empty(self.kept, dtype=torch.uint8)


@pytest.mark.parametrize("batch_size", [1, 7])
def test_the_peak_is_what_lives_at_the_same_time(batch_size: int, capfd: Any) -> None:
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)).eval()
    images = torch.randn(batch_size, 64)
    with torch.inference_mode():
        found = peak_memory(model, model, images)
    # Both sides of the activation function are there at a time, 256 numbers of four bytes each.
    assert found == WEIGHTS + 4 * batch_size * 64 + 2 * 4 * batch_size * 256
    assert capfd.readouterr() == ("", "")


def test_what_was_given_back_is_not_counted_twice() -> None:
    images = torch.zeros(1, 1)
    assert peak_memory(nn.Identity(), Passing(1_000, 500_000), images) == 4 + 500_000
    assert peak_memory(nn.Identity(), Passing(600_000, 500_000), images) == 4 + 600_000


def test_every_row_of_latency_has_the_memory_of_its_model_but_for_onnxruntime() -> None:
    pytest.importorskip("onnxruntime")
    models = {"dense": nn.Sequential(nn.Linear(8, 32), nn.ReLU()), "pruned": nn.Sequential(nn.Linear(8, 16), nn.ReLU())}
    fields = {"batch_sizes": (2,), "warmup": 1, "runs": 5, "backends": ("eager", "onnxruntime")}
    rows = measure_latency(models, torch.randn(1, 8), LatencySection.model_validate(fields))
    assert [(row["backend"], row["variant"], row["peak_memory_bytes"]) for row in rows] == [
        ("eager", "dense", 4 * (8 * 32 + 32) + 4 * 2 * 8 + 2 * 4 * 2 * 32),
        ("eager", "pruned", 4 * (8 * 16 + 16) + 4 * 2 * 8 + 2 * 4 * 2 * 16),
        ("onnxruntime", "dense", None),
        ("onnxruntime", "pruned", None),
    ]
