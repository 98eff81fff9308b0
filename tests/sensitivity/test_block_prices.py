"""The price of whole blocks: what computes nothing costs nothing and goes first."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_nets import batches, build, example, randomise
from torch import nn

import cleanai_ray as cleanai
from cleanai_ray.errors import PruningError
from cleanai_ray.graph.block import Block
from cleanai_ray.models.resnet20 import ResNetCifar
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.pruning.plan import BlockPlan
from cleanai_ray.sensitivity import BlockError, cheapest_blocks, measure_blocks

IMAGES = batches(size=12, sizes=(5, 5))
EXAMPLE = example(size=12)
REMOVABLE = ["layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer3.1", "layer3.2"]


def resnet() -> Any:
    torch.manual_seed(0)
    return randomise(ResNetCifar(3, 2, (4, 6, 8)))


@pytest.mark.parametrize("planted", ["layer1.1", "layer2.2", "layer3.1"])
@torch.no_grad()
def test_a_block_that_computes_nothing_goes_first_and_costs_nothing(planted: str) -> None:
    model = resnet()
    norm = model.get_submodule(planted).bn2
    norm.weight.zero_(), norm.bias.zero_()
    found = {block.name: block for block in measure_blocks(model, EXAMPLE, IMAGES)}
    assert list(found) == REMOVABLE
    assert found[planted].error == 0.0
    assert min(block.error for name, block in found.items() if name != planted) > 1e-5
    assert cheapest_blocks(list(found.values()), macs=1e-6) == [planted]
    small = cleanai.prune(model, EXAMPLE, IMAGES, remove_blocks=[planted])
    images = torch.cat([images for images, _ in IMAGES])
    assert torch.equal(copy.deepcopy(small.model).eval()(images), model(images))
    assert small.plan.achieved["macs"] < small.plan.achieved["macs_dense"]


@torch.no_grad()
def test_the_error_is_the_divergence_of_the_model_with_the_branch_at_its_mean() -> None:
    """Every fifth image measures, and the other four fifths give the mean: here images 4 and 9 of 10."""
    model = resnet()
    images = torch.cat([images for images, _ in IMAGES])
    probes, rest = images[4::5], images[[place for place in range(10) if place % 5 != 4]]
    before = model.layer1(torch.relu(model.bn1(model.conv1(rest))))
    block = model.layer2[1]
    x = model.layer2[0](before)
    mean = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x))))).mean(dim=(0, 2, 3))
    twin = copy.deepcopy(model)
    twin.layer2[1] = nn.Identity()
    twin.layer2[1].register_forward_hook(lambda _, args, output: torch.relu(output + mean[:, None, None]))
    dense, other = (each(probes).double().softmax(dim=1) for each in (model, twin))
    expected = float((dense * (dense / other).log()).sum(dim=1).mean())
    found = {block.name: block for block in measure_blocks(model, EXAMPLE, IMAGES)}["layer2.1"]
    assert found.error == pytest.approx(expected, rel=1e-4)
    whole = measure_complexity(model, EXAMPLE).macs
    assert found.macs == pytest.approx(2 * 6 * 6 * 9 * 6 * 6 / whole)
    assert found.price == pytest.approx(found.error / found.macs)


def priced(name: str, error: float, macs: float) -> BlockError:
    block = Block(name=name, form="block", end=None, shape=(1,))
    return BlockError(plan=BlockPlan(block=block, mean=(0.0,)), error=error, macs=macs)


@pytest.mark.parametrize(
    ("macs", "expected"),
    [(0.05, ["a"]), (0.1, ["a"]), (0.15, ["a", "c"]), (0.4, ["a", "c", "b"]), (0.45, ["a", "c", "b", "d.inner"])],
)
def test_the_lowest_error_for_what_is_saved_goes_first(macs: float, expected: list[str]) -> None:
    """Prices are 1, 3, 2, 4 and 5; `d` holds `d.inner`, which is cheaper."""
    blocks = [
        priced("a", 0.1, 0.1),
        priced("b", 0.6, 0.2),
        priced("c", 0.2, 0.1),
        priced("d.inner", 0.4, 0.1),
        priced("d", 1.5, 0.3),
    ]
    assert cheapest_blocks(blocks, macs) == expected


def test_more_than_all_blocks_save_is_refused() -> None:
    with pytest.raises(PruningError, match=r"macs is 0.5; allowed: at most 0.3, "):
        cheapest_blocks([priced("a", 0.1, 0.1), priced("b", 0.6, 0.2)], 0.5)


def test_a_network_without_blocks_has_no_prices() -> None:
    assert measure_blocks(build("plain"), example(), batches()) == ()


class Linear(nn.Module):
    """A branch that doubles what it reads: removed, it is put right by the layers that read the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)
        with torch.no_grad():
            self.conv.weight.copy_(2 * torch.eye(channels)[:, :, None, None])
            self.conv.bias.fill_(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x)


class Curved(nn.Module):
    """A smaller branch that no layer after it can make up for."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.5 * torch.relu(self.conv(x))


class TwoBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.linear = Linear(6)
        self.middle = nn.Conv2d(6, 6, 1)
        self.curved = Curved(6)
        self.last = nn.Conv2d(6, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.curved(torch.relu(self.middle(self.linear(torch.relu(self.first(x))))))
        return self.head(torch.relu(self.last(x)).mean(dim=(2, 3)))


def test_a_linear_branch_is_cheap_once_the_layer_behind_it_is_refitted() -> None:
    torch.manual_seed(0)
    model = TwoBranches().eval()
    with torch.no_grad():
        model.head.weight.mul_(20)
    images = [torch.randn(20, 3, 8, 8) for _ in range(5)]
    before = {block.name: block for block in measure_blocks(model, images[0][:1], images)}
    after = {block.name: block for block in measure_blocks(model, images[0][:1], images, repair=True)}
    assert list(before) == list(after) == ["linear", "curved"]
    assert before["linear"].price > before["curved"].price
    assert cheapest_blocks(list(before.values()), 1e-6) == ["curved"]
    # With the middle layer's weights tripled and its bias shifted, the model is exact, but for the ridge.
    assert after["linear"].error_repaired is not None
    assert after["linear"].error_repaired < 1e-3 * after["linear"].error
    assert cheapest_blocks(list(after.values()), 1e-6) == ["linear"]
    assert [after[name].error for name in after] == [before[name].error for name in before]
    assert all(block.error_repaired is None for block in before.values())
