"""Parts of splits and concatenations, gates over all channels, and norms of a model's own: pruned exactly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_kinds_of_networks import WIDTH, Coupled, images, without
from torch import Tensor, nn
from torch.nn import functional

from cleanai_ray.graph.graph import ChannelGraph


def twice(x: Tensor) -> Tensor:
    """As YOLO's C2f does: both halves, and what is made of the second."""
    one, two = x.chunk(2, 1)
    return torch.cat([one, two, two + two.tanh()], 1)


def last_and_first(x: Tensor) -> Tensor:
    parts = x.chunk(4, 1)
    return torch.cat([parts[3], parts[0]], 1)


# Parts of a split in some order, its width, the channels that go with channel 1, and where they are read (by hand).
PARTS: dict[str, tuple[Callable[[Tensor], Tensor], int, list[int], list[int]]] = {
    "swapped": (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), 8, [1, 5], [1, 5]),
    "read twice": (twice, 12, [1, 5], [1, 5, 9]),
    "not all of them": (last_and_first, 4, [1, 3, 5, 7], [1, 3]),
    "by sizes": (lambda x: torch.cat(x.split([x.shape[1] // 2] * 2, 1)[::-1], 1), 8, [1, 5], [1, 5]),
}


@pytest.mark.parametrize("kind", PARTS)
def test_parts_of_a_split_are_known_by_their_number_and_not_by_the_order_of_their_readers(kind: str) -> None:
    between, width, gone, columns = PARTS[kind]
    model = Coupled(between, width).eval()
    graph = ChannelGraph(model, images())
    assert graph.notes == ()
    graph.remove({"conv": [1]})
    assert graph.kept_channels["conv"].tolist() == [channel for channel in range(WIDTH) if channel not in gone]
    torch.testing.assert_close(graph.model(images()), without(model, "read", columns)(images()))


class Joined(nn.Module):
    """Features of tokens concatenated in the last dimension, with a class token upstream, and then pooled."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.token = nn.Conv2d(2, WIDTH, 1), nn.Parameter(torch.randn(1, 1, WIDTH))
        self.up, self.read, self.fc = nn.Linear(WIDTH, 5), nn.Linear(WIDTH + 5, 7), nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = torch.relu(self.read(torch.cat([x, torch.relu(self.up(x))], -1)))
        return self.fc(torch.cat([x[:, 0], x[:, 1:].mean(1)], 1))


def test_features_are_concatenated_in_whatever_dimension_they_are() -> None:
    model = Joined().eval()
    graph = ChannelGraph(model, images())
    assert graph.notes == ()
    stream = next(group.name for group in graph.groups if any(member.layer == "stem" for member in group.members))
    graph.remove({stream: [2], "up": [1, 3], "read": [0]})
    twin = without(without(model, "read", [2, WIDTH + 1, WIDTH + 3]), "fc", [0, 7])
    with torch.no_grad():
        twin.up.weight[:, [2]] = 0.0
    torch.testing.assert_close(graph.model(images()), twin(images()))


# Operations whose result is the same for all channels.
GATES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "by a convolution": lambda net, x: x * net.gate(x).sigmoid(),
    "of a mean": lambda net, x: x + net.gate(x).mean(1, keepdim=True),
    "by the largest": lambda net, x: x * net.gate(x).amax((1, 2, 3), keepdim=True),
}


@pytest.mark.parametrize("kind", GATES)
def test_what_is_broadcast_over_channels_has_none_of_them(kind: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.gate = nn.Conv2d(2, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, 1, 1)
            self.read, self.fc = nn.Conv2d(WIDTH, 6, 1), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = GATES[kind](self, torch.relu(self.conv(x)))
            return self.fc(torch.relu(self.read(x)).mean((2, 3)))

    model = Net().eval()
    graph = ChannelGraph(model, images())
    assert {"conv", "read"} <= {group.name for group in graph.groups}, graph.notes
    graph.remove({"conv": [1, 6]})
    twin = without(model, "read", [1, 6])
    with torch.no_grad():
        twin.gate.weight[:, [1, 6]] = 0.0
    torch.testing.assert_close(graph.model(images()), twin(images()))


class ResponseNorm(nn.Module):
    """ConvNeXt V2's global response normalisation, under a name that says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(1, 1, 1, WIDTH)), nn.Parameter(torch.rand(1, 1, 1, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        size = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        return (self.scale * x * size / (size.mean(-1, keepdim=True) + 1e-6) + self.shift + x).permute(0, 3, 1, 2)


def test_a_norm_of_a_model_s_own_is_narrowed_as_one_of_the_channels_that_stay() -> None:
    norm = ResponseNorm()
    model = Coupled(norm, WIDTH).eval()
    graph = ChannelGraph(model, images())
    assert {"conv", "read"} == {group.name for group in graph.groups}, graph.notes
    graph.remove({"conv": [1, 6]})
    stay = [0, 2, 3, 4, 5, 7]
    small = copy.deepcopy(norm)
    small.scale, small.shift = nn.Parameter(norm.scale[..., stay]), nn.Parameter(norm.shift[..., stay])
    normed = small(torch.relu(model.conv(images()))[:, stay])
    expected = functional.conv2d(normed, model.read.weight[:, stay], model.read.bias)
    torch.testing.assert_close(graph.model(images()), model.fc(torch.relu(expected).mean((2, 3))))
