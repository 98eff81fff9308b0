"""Modules without parameters that hold a value, or a kernel, for each channel: pruned as norms are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import FrozenBatchNorm2d

from cleanai_ray.api import load, prune, save
from cleanai_ray.graph.channelwise import channelwise_classes, channelwise_width
from cleanai_ray.graph.graph import ChannelGraph

WIDTH = 8


def images() -> Tensor:
    return torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def frozen() -> nn.Module:
    norm = FrozenBatchNorm2d(WIDTH)
    for value in (norm.weight, norm.running_var):
        value.uniform_(0.5, 1.5)
    for value in (norm.bias, norm.running_mean):
        value.normal_()
    return norm


class Blur(nn.Module):
    """A fixed kernel a channel, and the width as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = WIDTH
        self.register_buffer("filt", torch.rand(WIDTH, 1, 3, 3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.filt, stride=2, padding=1, groups=self.channels)


class Affine(nn.Module):
    """A fixed scale and shift in the shape of a map."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(1, WIDTH, 1, 1) + 0.5)
        self.register_buffer("shift", torch.rand(1, WIDTH, 1, 1))
        self.register_buffer("count", torch.tensor(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Net(nn.Module):
    """A convolution, a module in question, an activation, and what reads it."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.between, self.read = nn.Conv2d(2, WIDTH, 3, padding=1), between, nn.Conv2d(WIDTH, 6, 1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.between(self.conv(x)))
        return self.fc(torch.relu(self.read(x)).mean((2, 3)))


KINDS: dict[str, Callable[[], nn.Module]] = {"frozen norm": frozen, "blur": Blur, "affine": Affine}


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_narrowed_with_the_layer_before_them(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    between = KINDS[kind]()
    model = Net(between).eval()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.read.weight[:, [1, 6]] = 0.0
    graph = ChannelGraph(model, images())
    assert graph.notes == ()
    group = next(group for group in graph.groups if group.name == "conv")
    assert ("between", "both") in {(member.layer, member.side) for member in group.members}
    graph.remove({"conv": [1, 6]})
    assert channelwise_width(graph.model.get_submodule("between")) == WIDTH - 2
    torch.testing.assert_close(graph.model(images()), twin(images()))
    result = prune(model, images(), method="magnitude", ratio=0.5, round_to=None)
    assert result.model.conv.out_channels == WIDTH // 2
    save(result, tmp_path)

    def rebuilt() -> nn.Module:
        torch.manual_seed(0)
        return Net(KINDS[kind]()).eval()

    torch.testing.assert_close(load(tmp_path, rebuilt)(images()), result.model(images()))


class Table(nn.Module):
    """Holds a number for each position, and not for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias", torch.rand(64))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias.reshape(8, 8)


class Ambiguous(nn.Module):
    """Holds values of two lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("one", torch.rand(WIDTH))
        self.register_buffer("two", torch.rand(WIDTH - 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.one.sum() * self.two.sum()


def test_what_holds_other_things_is_an_operation() -> None:
    model = Net(Table()).eval()
    assert channelwise_width(model.between) == 64
    assert channelwise_classes(model, images()) == []
    assert {group.name for group in ChannelGraph(model, images()).groups} == {"conv", "read"}
    others = (Ambiguous(), nn.BatchNorm2d(WIDTH), nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Dropout())
    assert [channelwise_width(module) for module in others] == [None] * 5
