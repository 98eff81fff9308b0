"""Layers that read a table of positions and no samples, and repair with fewer images than are held back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cleanai_ray.api import prune
from cleanai_ray.nn.consumers import as_positions
from cleanai_ray.repair import RepairOptions, repair
from cleanai_ray.repair.trace import trace_consumers

TABLE, SIZE = 64, 8


class PositionBias(nn.Module):
    """A bias for each position, from a small network that reads coordinates, as in Swin V2 and MaxViT."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
        self.first, self.last, self.fc = nn.Linear(2, 32), nn.Linear(32, 24), nn.Linear(24, 3)
        self.register_buffer("grid", torch.randn(TABLE, 2))

    def forward(self, x: Tensor) -> Tensor:
        bias = self.last(torch.relu(self.first(self.grid))).t().reshape(1, 24, SIZE, SIZE)
        return self.fc(torch.relu(self.second(torch.relu(self.conv(x))) + bias).mean((2, 3)))


def images(number: int, seed: int = 1) -> Tensor:
    return torch.randn(number, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def test_layers_that_read_no_samples_are_known() -> None:
    found = {consumer.name: consumer.reads_samples for consumer in trace_consumers(PositionBias(), images(1))}
    assert found == {"conv": True, "second": True, "first": False, "last": False, "fc": True}


def test_what_comes_from_no_sample_is_the_same_for_each() -> None:
    table = torch.arange(10.0).reshape(5, 2)
    found = as_positions(nn.Linear(2, 3), table, num_samples=3)
    assert found.shape == (3, 5, 2)
    assert all(torch.equal(sample, table) for sample in found)


# Neither 12 nor 13 images divide the table of 64 positions; 16 do.
@pytest.mark.parametrize("batch", [12, 13, 16])
@pytest.mark.parametrize("compensation", ["closed_form", "sequential", "unfolded", "blockwise"])
def test_a_table_of_positions_is_no_hindrance(compensation: str, batch: int) -> None:
    model, data = PositionBias().eval(), [images(batch, seed) for seed in range(4)]
    result = prune(model, images(1), method="magnitude", ratio=0.3)
    assert "last" in result.kept_inputs
    options = RepairOptions(compensation=compensation, batch_norm="none", block_steps=2)
    outcome = repair(model, result, data, options)
    fresh = images(32, seed=9)

    def error(network: nn.Module) -> float:
        return float((network(fresh) - model(fresh)).square().mean().detach())

    assert error(outcome.model) < error(result.model)
    assert outcome.skipped == (() if compensation == "closed_form" else ("last",))


@pytest.mark.parametrize(
    ("number", "said"),
    [(1, "1 calibration image is too few"), (4, "4 calibration images are too few"), (5, "")],
)
def test_too_few_images_to_hold_any_back_are_told(number: int, said: str) -> None:
    model = PositionBias().eval()
    result = prune(model, images(1), method="magnitude", ratio=0.3)
    outcome = repair(model, result, [images(number)])
    assert outcome.chosen["compensation"] != "none"
    assert outcome.chosen["kl"] < outcome.tried[0]["kl"]
    assert [note for note in outcome.notes if "too few" in note] == (
        [f"{said} to hold any back: variants are judged on what they repair with"] if said else []
    )


def test_repair_reads_batches_as_loaders_give_them() -> None:
    model, data = PositionBias().eval(), images(12)
    result = prune(model, images(1), method="magnitude", ratio=0.3)
    options = RepairOptions(compensation="closed_form", batch_norm="none")
    expected = repair(model, result, [data], options).model(data)
    for form in ([data], {"pixel_values": data, "labels": torch.zeros(12)}, (data, {"labels": torch.zeros(12)})):
        assert torch.equal(repair(model, result, [form], options).model(data), expected)  # type: ignore[list-item]
