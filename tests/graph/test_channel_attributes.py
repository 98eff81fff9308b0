"""Scales whose shape is written down, and attention over channels in their order."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from cleanai_ray.graph.graph import ChannelGraph

WIDTH = 8


def images() -> Tensor:
    return torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))


class ShapedScale(nn.Module):
    """A scale of each channel that is brought into a shape which is written down, as PoolFormer's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shape, self.scale = (WIDTH, 1, 1), nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.conv, self.read = nn.Conv2d(2, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, 6, 1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x) * self.scale.view(self.shape)
        return self.fc(torch.relu(self.read(torch.relu(x))).mean((2, 3)))


def test_a_shape_that_repeats_the_width_of_a_scale_is_cut_with_it() -> None:
    model = ShapedScale().eval()
    graph = ChannelGraph(model, images())
    assert graph.notes == ()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.read.weight[:, [1, 6]] = 0.0
    graph.remove({"conv": [1, 6]})
    assert graph.model.shape == (WIDTH - 2, 1, 1)
    torch.testing.assert_close(graph.model(images()), twin(images()))


class ChannelAttention(nn.Module):
    """ECA: a convolution over the channels' means, in their order."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.over = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv1d(1, 1, 3, padding=1)
        self.read, self.fc = nn.Conv2d(8, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.relu(self.first(x)))
        gate = self.over(x.mean((2, 3)).view(len(x), 1, -1)).sigmoid()
        return self.fc(torch.relu(self.read(x * gate.view(len(x), -1, 1, 1))).mean((2, 3)))


def test_channels_that_a_convolution_mixes_by_their_order_keep_their_width_and_are_named() -> None:
    graph = ChannelGraph(ChannelAttention().eval(), images())
    assert {group.name: group.num_units for group in graph.groups} == {"first": 8, "read": 6}
    named = [note for note in graph.notes if "'second'" in note]
    assert len(named) == 1
    assert "its channels cannot be followed through operation" in named[0]
