"""Removable branches are found by what reads what, and removed without side effects."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_nets import NETS, build, example, randomise, tiny_vit
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from cleanai_ray.graph.block import remove_block, remove_blocks
from cleanai_ray.graph.blocks import find_blocks
from cleanai_ray.nn.open_attention import open_attention


def names(model: nn.Module, images: Tensor) -> list[str]:
    return [block.name for block in find_blocks(model, images)]


class Net(nn.Module):
    """A stem, something residual that `body` computes with two convolutions and a batch-norm, and a classifier."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.third, self.norm, self.gain = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Parameter(torch.ones(4, 1, 1))
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(4, 3)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self, self.stem(x)).mean(dim=(2, 3)))


def net(body: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    torch.manual_seed(0)
    return randomise(Net(body))


def in_place(net: Any, x: Tensor) -> Tensor:
    """The activation between the convolutions would change the shortcut if it were given the shortcut."""
    return x + net.second(net.relu(net.first(x)))


def side_by_side(net: Any, x: Tensor) -> Tensor:
    return (x + net.first(x)) + net.second(net.norm(x))


def nested(net: Any, x: Tensor) -> Tensor:
    y = net.first(x)
    return x + net.third(y + net.second(functional.gelu(y)))


REMOVABLE = {
    "in place": (in_place, ["first"]),
    "side by side": (side_by_side, ["first", "second"]),
    "nested": (nested, ["second", "first"]),
    "functional": (lambda net, x: functional.relu(x + net.norm(net.first(x))), ["first"]),
    "a constant added": (lambda net, x: x + net.gain + net.first(x), ["first"]),
}
KEPT = {
    "the shortcut is a convolution": lambda net, x: net.third(x) + net.first(x),
    "no sum": lambda net, x: net.second(functional.relu(net.first(x))),
    "a product": lambda net, x: x * net.first(x),
    "read elsewhere": lambda net, x: (y := net.first(x)) * (x + net.second(y)),
    "the sum is weighted": lambda net, x: torch.add(x, net.first(x), alpha=2),
    "the branch is broadcast": lambda net, x: x + net.first(x).mean(dim=(2, 3), keepdim=True),
    "no module returns it": lambda net, x: x + net.gain * net.first(x),
    "it runs twice": lambda net, x: net.third((y := x + net.first(x)) + net.first(y)),
    "it reads more": lambda net, x: (y := net.third(x)) + net.first(y * x),
}


@pytest.mark.parametrize(("body", "expected"), REMOVABLE.values(), ids=REMOVABLE)
def test_branches_are_found_whatever_they_look_like(body: Any, expected: list[str]) -> None:
    assert names(net(body), example()) == expected


@pytest.mark.parametrize("body", KEPT.values(), ids=KEPT)
def test_what_is_no_branch_of_an_identity_stays(body: Any) -> None:
    assert names(net(body), example()) == []


@pytest.mark.parametrize("name", [name for name in NETS if name != "residual"])
def test_a_network_without_sums_has_none(name: str) -> None:
    assert names(build(name), example()) == []


def test_blocks_of_networks_are_those_whose_shortcut_is_the_identity() -> None:
    """By the papers' tables: the first block of a stage changes the width, or its stride is 2."""
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    resnet = names(models.resnet18(num_classes=3).eval(), images)
    assert resnet == ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]
    # t, c, n, s of MobileNet-V2: blocks 2 to n of each row; features.0 is the stem.
    mobilenet = names(models.mobilenet_v2(num_classes=3).eval(), images)
    assert mobilenet == [f"features.{place}" for place in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)]
    vit = [name.removeprefix("encoder.layers.encoder_layer_") for name in names(tiny_vit(), images[:, :, :16, :16])]
    assert vit == ["0.self_attention", "0.mlp", "1.self_attention", "1.mlp"]


def test_a_block_says_what_goes_with_it() -> None:
    (found,) = find_blocks(build("residual"), example())
    assert found.form == "branch"
    assert (found.name, found.end, found.skipped, found.shape) == ("conv1", "bn2", ("conv1", "bn1", "conv2"), (6, 1, 1))
    assert set(found.layers) == {"conv1", "bn1", "conv2", "bn2"}
    assert [name for name in ("conv1", "bn2", "conv10", "head", "stem") if found.holds(name)] == ["conv1", "bn2"]


def test_finding_leaves_the_model_as_it_is() -> None:
    model = tiny_vit().train()
    before = copy.deepcopy(model.state_dict())
    assert find_blocks(model, example(size=16, channels=3))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class HeldNorm(nn.Module):
    """The last batch-norm of a block, whose output is replaced by a constant: the slow twin of a removed branch."""

    def __init__(self, constant: Tensor) -> None:
        super().__init__()
        self.constant = constant

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones_like(x) * self.constant[:, None, None]


@torch.no_grad()
def test_a_removed_block_is_the_dense_one_with_a_constant_branch() -> None:
    torch.manual_seed(0)
    model = randomise(models.resnet18(num_classes=3))
    images = torch.randn(3, 3, 32, 32)
    block = next(block for block in find_blocks(model, images) if block.name == "layer2.1")
    constant = torch.randn(128)
    twin, small = copy.deepcopy(model), copy.deepcopy(model)
    twin.layer2[1].bn2 = HeldNorm(constant)
    remove_block(small, block, constant)
    torch.testing.assert_close(small(images), twin(images))
    assert not torch.allclose(small(images), model(images))
    gone = {name for name in model.state_dict() if name.startswith("layer2.1.")}
    assert set(small.state_dict()) == (set(model.state_dict()) - gone) | {"layer2.1.mean"}


@torch.no_grad()
def test_removed_attention_is_the_dense_one_with_a_constant_branch() -> None:
    model = open_attention(tiny_vit())
    images = torch.randn(3, 3, 16, 16)
    block = find_blocks(model, images)[2]
    small, twin = copy.deepcopy(model), copy.deepcopy(model)
    constant = torch.randn(32)
    remove_block(small, block, constant)
    out: Any = twin.get_submodule(block.name).out_proj  # Without its weight, attention is its last bias.
    out.weight.zero_()
    out.bias.copy_(constant)
    torch.testing.assert_close(small(images), twin(images))
    assert not torch.allclose(small(images), model(images))


class PostNorm(nn.Module):
    """A feed-forward block that normalises the sum, as the first transformers do (Vaswani et al. 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.contract, self.norm = nn.Linear(4, 9), nn.Linear(9, 4), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.contract(functional.gelu(self.expand(x))))


@torch.no_grad()
def test_a_norm_that_follows_the_sum_stays_under_its_name() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), PostNorm(), nn.Linear(4, 3)).eval()
    model[1].norm.weight.uniform_(0.5, 2.0)
    images, mean = torch.randn(5, 7, 2), torch.randn(4)
    (block,) = find_blocks(model, images)
    assert (block.name, block.form, block.after, block.fold) == ("1", "block", ("norm",), "0")
    assert block.layers == ("1.expand", "1.contract")
    assert not block.holds("1.norm")
    small = copy.deepcopy(model)
    remove_block(small, block, mean)
    torch.testing.assert_close(small(images), model[2](model[1].norm(model[0](images) + mean)))
    folded = copy.deepcopy(model)
    remove_blocks(folded, [(block, mean)])
    torch.testing.assert_close(folded(images), small(images))
    torch.testing.assert_close(folded[0].bias, model[0].bias + mean)
    assert {name for name in folded.state_dict() if name.startswith("1.")} == {"1.norm.weight", "1.norm.bias"}
