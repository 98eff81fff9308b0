"""Convolutions in one and in three dimensions are refitted as those in two, and no layer that stays is left untold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cleanai_ray as cleanai
from cleanai_ray.repair import RepairOptions, repair

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOLS = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}


def network(dims: int, spread: int) -> nn.Module:
    """Return a network in some dimensions, of which all but the last `spread` are of size 1."""

    def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Module:
        values = ((1, size), (1, stride), (0, size // 2))
        shape = [(other,) * (dims - spread) + (value,) * spread for other, value in values]
        kind: Any = CONVOLUTIONS[dims]
        return kind(inputs, outputs, shape[0], shape[1], shape[2], bias=False)

    torch.manual_seed(0)
    layers = [convolution(2, 8, 3), nn.ReLU(), convolution(8, 12, 3), nn.ReLU(), convolution(12, 10, 1, 2), nn.ReLU()]
    return nn.Sequential(*layers, POOLS[dims](1), nn.Flatten(), nn.Linear(10, 3)).eval()


def repaired(dims: int, spread: int, images: Tensor) -> tuple[cleanai.PruneResult, Any]:
    model = network(dims, spread)
    result = cleanai.prune(model, images[:1], method="magnitude", ratio=0.4, round_to=None)
    options = RepairOptions(compensation="closed_form", batch_norm="none")
    return result, repair(model, result, [images], options)


@pytest.mark.parametrize(("dims", "spread"), [(1, 1), (3, 2)])
def test_a_convolution_is_refitted_as_its_twin_in_two_dimensions_is(dims: int, spread: int) -> None:
    """A map of 1 x 10 read with kernels of 1 x 3 is a sequence; one of 1 x 6 x 6 read with 1 x 3 x 3, a map."""
    sides = (10,) if spread == 1 else (6, 6)
    images = torch.randn(12, 2, *(1,) * (dims - spread), *sides, generator=torch.Generator().manual_seed(1))
    (_, one), (_, two) = (
        repaired(dims, spread, images),
        repaired(2, spread, images.view(12, 2, *(1,) * (2 - spread), *sides)),
    )
    state, twin = one.model.state_dict(), two.model.state_dict()
    assert state.keys() == twin.keys()
    assert "2.bias" in state
    assert (one.skipped, two.skipped) == ((), ())
    for name, value in state.items():
        torch.testing.assert_close(value.flatten(), twin[name].flatten(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dims", [1, 3])
def test_outputs_come_nearer_and_the_repaired_model_is_loaded(dims: int, tmp_path: Path) -> None:
    images = torch.randn(64, 2, *(6,) * dims, generator=torch.Generator().manual_seed(1))
    result, outcome = repaired(dims, dims, images)
    dense = network(dims, dims)(images)
    before, after = ((model(images) - dense).square().mean() for model in (result.model, outcome.model))
    assert after < 0.8 * before
    changed = cleanai.PruneResult(**{**vars(result), "model": outcome.model})
    cleanai.save(changed, tmp_path)
    loaded = cleanai.load(tmp_path, lambda: network(dims, dims)).eval()
    assert torch.equal(loaded(images), outcome.model(images))


@pytest.mark.parametrize("kind", [nn.ConvTranspose1d, nn.ConvTranspose3d])
def test_layers_that_stay_as_they_are_are_named(kind: Any) -> None:
    dims = 1 if kind is nn.ConvTranspose1d else 3
    torch.manual_seed(0)
    layers = [CONVOLUTIONS[dims](2, 6, 1), nn.ReLU(), kind(6, 5, 1), nn.ReLU(), POOLS[dims](1), nn.Flatten()]
    model, images = nn.Sequential(*layers, nn.Linear(5, 3)).eval(), torch.randn(8, 2, *(3,) * dims)
    result = cleanai.prune(model, images[:1], method="magnitude", ratio=0.4, round_to=None)
    for compensation in ("closed_form", "unfolded"):
        outcome = repair(model, result, [images], RepairOptions(compensation=compensation, batch_norm="none"))
        assert outcome.skipped == ("2",)
