"""Networks on which index mappings go wrong: each is pruned exactly, or the layer concerned keeps its width."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cleanai_ray.api import load, prune, save
from cleanai_ray.errors import PruningError
from cleanai_ray.graph.coupling import Units
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.graph.group import ChannelGroup

WIDTH, SIZE = 8, 4


def images(batch: int = 3) -> Tensor:
    return torch.randn(batch, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A convolution, something in between, and what reads it; by default two Linear layers."""

    def __init__(self, between: Callable[[Tensor], Tensor], features: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.between = nn.Conv2d(2, WIDTH, 3, padding=1), between
        self.read, self.fc = nn.Linear(features, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.read(self.between(torch.relu(self.conv(x))))))


def without(model: nn.Module, layer: str, columns: list[int]) -> nn.Module:
    """The dense model whose reader has zeros for the columns."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.get_submodule(layer).weight[:, columns] = 0.0  # type: ignore[index, operator]
    return twin


# In which order features are flattened, and which of them belong to channel c (by hand).
POSITIONS = SIZE * SIZE
ORDERS: dict[str, tuple[Callable[[Tensor], Tensor], int, Callable[[int], list[int]]]] = {
    "channels first": (lambda x: x.flatten(1), POSITIONS, lambda c: [c * POSITIONS + p for p in range(POSITIONS)]),
    "channels last": (
        lambda x: x.permute(0, 2, 3, 1).flatten(1),
        POSITIONS,
        lambda c: [p * WIDTH + c for p in range(POSITIONS)],
    ),
    "channels in the middle": (
        lambda x: x.permute(0, 2, 1, 3).flatten(1),
        POSITIONS,
        lambda c: [(row * WIDTH + c) * SIZE + column for row in range(SIZE) for column in range(SIZE)],
    ),
    "tokens": (
        lambda x: x.flatten(2).transpose(1, 2).flatten(1),
        POSITIONS,
        lambda c: [p * WIDTH + c for p in range(POSITIONS)],
    ),
    "mean beside map": (
        lambda x: torch.cat([x.mean((2, 3)), functional.adaptive_avg_pool2d(x, 2).flatten(1)], 1),
        5,
        lambda c: [c, *(WIDTH + c * 4 + p for p in range(4))],
    ),
    "map beside mean": (
        lambda x: torch.cat([functional.adaptive_avg_pool2d(x, 2).flatten(1), x.mean((2, 3))], 1),
        5,
        lambda c: [*(c * 4 + p for p in range(4)), 4 * WIDTH + c],
    ),
    "mean beside map, channels last": (
        lambda x: torch.cat([x.mean((2, 3)), x.permute(0, 2, 3, 1).flatten(1)], 1),
        POSITIONS + 1,
        lambda c: [c, *(WIDTH + p * WIDTH + c for p in range(POSITIONS))],
    ),
}


@pytest.mark.parametrize("order", ORDERS)
def test_flattened_features_are_cut_where_their_channels_are(order: str) -> None:
    between, times, columns = ORDERS[order]
    model, gone = Net(between, times * WIDTH).eval(), [1, 6]
    graph = ChannelGraph(model, images())
    graph.remove({"conv": gone})
    twin = without(model, "read", [column for channel in gone for column in columns(channel)])
    torch.testing.assert_close(graph.model(images()), twin(images()))


@pytest.mark.parametrize("order", ORDERS)
def test_the_check_finds_a_cut_of_the_wrong_columns(order: str) -> None:
    """The group is given the columns of other channels, as an index mapping that confuses orders does."""
    between, times, _ = ORDERS[order]
    model = Net(between, times * WIDTH).eval()
    graph = ChannelGraph(model, images())
    found = {group.name: group for group in graph.groups}
    if "conv" not in found:
        return
    member = next(member for member in found["conv"].members if member.layer == "read")
    member.roots[:] = (member.roots + 1) % WIDTH
    with pytest.raises(PruningError, match=r"the cut of group 'conv' is wrong: what layer 'read' reads"):
        graph.remove({"conv": [1, 6]})


def test_the_check_can_be_turned_off() -> None:
    graph = ChannelGraph(Net(lambda x: x.flatten(1), POSITIONS * WIDTH).eval(), images(), check=False)
    member = next(
        member for group in graph.groups if group.name == "conv" for member in group.members if member.side == "in"
    )
    member.roots[:] = (member.roots + 1) % WIDTH
    graph.remove({"conv": [1, 6]})
    assert graph.model.read.in_features == POSITIONS * (WIDTH - 2)


class Split(nn.Module):
    """One map in parts that are convolved each by itself and concatenated, in several stages."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts, part = parts, 12 // parts
        self.expand = nn.Conv2d(2, 12, 1)
        self.depthwise = nn.ModuleList(nn.Conv2d(part, part, 3, padding=1, groups=part) for _ in range(parts))
        self.read, self.fc = nn.Conv2d(12, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        chunks = torch.relu(self.expand(x)).chunk(self.parts, 1)
        x = torch.cat([layer(chunk) for layer, chunk in zip(self.depthwise, chunks, strict=True)], 1)
        return self.fc(torch.relu(self.read(torch.relu(x))).mean((2, 3)))


@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_split_map_loses_the_same_channels_of_every_part(parts: int, at_once: bool) -> None:
    model, part = Split(parts).eval(), 12 // parts
    graph = ChannelGraph(model, images())
    group = next(g for g in graph.groups if any(m.layer == "expand" and m.side == "out" for m in g.members))
    assert {m.layer for m in group.members} >= {"expand", "read", *(f"depthwise.{i}" for i in range(parts))}
    steps = [[0, 2]] if at_once else [[0], [1]]  # After the first of two cuts, channel 2 is number 1.
    for step in steps:
        graph.remove({group.name: step})
    assert graph.model.expand.out_channels == 12 - 2 * parts
    twin = without(model, "read", [i * part + c for i in range(parts) for c in (0, 2)])
    torch.testing.assert_close(graph.model(images()), twin(images()))


def gated(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, 1)
    return value * gate.sigmoid()


def doubled(x: Tensor, y: Tensor) -> Tensor:
    return torch.cat([x, x], 1) + torch.cat([y, y], 1)


class Coupled(nn.Module):
    """A convolution whose channels are coupled among themselves by what follows."""

    def __init__(self, between: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.between = nn.Conv2d(2, WIDTH, 3, padding=1), between
        self.read, self.fc = nn.Conv2d(width, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.read(self.between(torch.relu(self.conv(x))))).mean((2, 3)))


# What couples channels, the width after it, and the units of eight channels, by hand.
COUPLINGS: dict[str, tuple[Callable[[Tensor], Tensor], int, list[int]]] = {
    "halves": (gated, 4, [0, 1, 2, 3, 0, 1, 2, 3]),
    "quarters": (lambda x: sum(x.chunk(4, 1)), 2, [0, 1, 0, 1, 0, 1, 0, 1]),
    "even and odd": (lambda x: x[:, ::2] * x[:, 1::2], 4, [0, 0, 1, 1, 2, 2, 3, 3]),
    "twice": (lambda x: torch.cat([x, x.tanh()], 1), 16, [0, 1, 2, 3, 4, 5, 6, 7]),
    "each twice over": (lambda x: doubled(x, x.tanh()), 16, [0, 1, 2, 3, 4, 5, 6, 7]),
}


@pytest.mark.parametrize("kind", COUPLINGS)
def test_channels_that_meet_are_one_unit(kind: str) -> None:
    between, width, units = COUPLINGS[kind]
    graph = ChannelGraph(Coupled(between, width).eval(), images())
    group = next((group for group in graph.groups if group.name == "conv"), None)
    assert group is not None, graph.notes
    assert group.unit_of.tolist() == units
    graph.remove({"conv": [0]})
    assert graph.model.conv.out_channels == WIDTH - units.count(units[0])


@pytest.mark.parametrize("kind", COUPLINGS)
def test_plans_of_coupled_channels_are_what_is_cut_and_can_be_loaded(kind: str, tmp_path: object) -> None:
    between, width, _ = COUPLINGS[kind]
    model = Coupled(between, width).eval()
    result = prune(model, images(), method="magnitude", ratio=0.5, steps=3)
    plan = next(group for group in result.plan.groups if group.name == "conv")
    assert result.model.conv.out_channels == WIDTH - len(plan.removed) == WIDTH // 2
    save(result, str(tmp_path))
    torch.testing.assert_close(
        load(str(tmp_path), lambda: Coupled(between, width).eval())(images()), result.model(images())
    )


@pytest.mark.parametrize(
    ("number", "pairs", "layout"),
    [
        (6, [], (1, False)),
        (6, [(0, 3), (4, 1), (5, 2)], (2, False)),
        (6, [(0, 1), (2, 3), (4, 5)], (2, True)),
        (8, [(0, 4)], (2, False)),  # Blocks stay equally wide, so that the other channels pair up as well.
        (8, [(0, 2), (0, 4)], (4, False)),
        (6, [(0, 5)], (6, False)),
    ],
)
def test_units_are_the_smallest_regular_ones(
    number: int, pairs: list[tuple[int, int]], layout: tuple[int, bool]
) -> None:
    units = Units(number)
    for pair in pairs:
        units.join(*pair)
    assert units.layout() == layout
    group = ChannelGroup(name="g", num_channels=number, num_blocks=layout[0], members=(), whole_heads=layout[1])
    assert all(group.unit_of[one] == group.unit_of[other] for one, other in pairs)


@pytest.mark.parametrize("parameters", [1, WIDTH])
def test_an_activation_with_one_parameter_for_all_channels_is_no_layer(parameters: int) -> None:
    model = Coupled(nn.PReLU(parameters), WIDTH).eval()
    graph = ChannelGraph(model, images())
    graph.remove({"conv": [2, 5]})
    assert (graph.model.conv.out_channels, graph.model.between.num_parameters) == (6, 1 if parameters == 1 else 6)
    torch.testing.assert_close(graph.model(images()), without(model, "read", [2, 5])(images()))


# Code that relies on a width, or mixes channels: none of it can be narrowed.
FIXED: dict[str, Callable[[Tensor], Tensor]] = {
    "mean over channels": lambda x: x * torch.sigmoid(x.mean(1, keepdim=True)),
    "softmax over channels": lambda x: x.softmax(1),
    "sizes of a split": lambda x: torch.cat([part.tanh() for part in x.split(4, 1)][::-1], 1),
    "neighbouring channels": lambda x: x + x.roll(1, 1),
    "a constant width": lambda x: x.reshape(-1, WIDTH, SIZE, SIZE),
}


@pytest.mark.parametrize("kind", FIXED)
def test_what_cannot_be_narrowed_keeps_its_width_alone_and_is_named(kind: str) -> None:
    graph = ChannelGraph(Coupled(FIXED[kind], WIDTH).eval(), images())
    assert {group.name for group in graph.groups} == {"read"}
    assert any(note.startswith("layer 'conv' keeps its width: ") for note in graph.notes)
    graph.remove({"read": np.array([0])})


@pytest.mark.parametrize("kind", FIXED)
def test_the_check_needs_no_trial_to_find_a_wrong_cut(kind: str) -> None:
    graph = ChannelGraph(Coupled(FIXED[kind], WIDTH).eval(), images(), check=False)
    if "conv" not in {group.name for group in graph.groups}:
        return
    graph._check = True
    with pytest.raises(PruningError, match=r"the cut of group 'conv' is wrong|the pruned model does not run"):
        graph.remove({"conv": [0, 4, 5]})


class Packed(nn.Module):
    """Attention with packed queries, keys and values, cut apart in some way; heads by view."""

    def __init__(self, cut: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.norm, self.cut = nn.Conv2d(2, 8, 1), nn.LayerNorm(8), cut
        self.packed, self.out, self.fc = nn.Linear(8, 24, bias=False), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        num, length, _ = x.shape
        parts = self.cut(self.packed(self.norm(x)))
        query, key, value = (part.reshape(num, length, 2, 4).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(num, length, 8)
        return self.fc((x + self.out(mixed)).mean(1))


CUTS: dict[str, Callable[[Tensor], Any]] = {
    "chunk": lambda x: x.chunk(3, -1),
    "split": lambda x: x.split(8, 2),
    "split by sizes": lambda x: x.split([8, 8, 8], -1),
    "slices": lambda x: (x[..., :8], x[..., 8:16], x[..., 16:]),
    "unbind": lambda x: x.unflatten(-1, (3, 8)).unbind(2),
}


@pytest.mark.parametrize("kind", CUTS)
def test_packed_projections_cut_apart_keep_their_width_alone(kind: str) -> None:
    model = Packed(CUTS[kind]).eval()
    graph = ChannelGraph(model, images())
    stream = next(group for group in graph.groups if any(member.layer == "norm" for member in group.members))
    assert {(m.layer, m.side) for m in stream.members} >= {("stem", "out"), ("out", "out"), ("packed", "in")}
    assert not any(m.layer == "packed" and m.side == "out" for group in graph.groups for m in group.members)
    graph.remove({stream.name: [1, 5]})
    assert graph.model.packed.weight.shape == (24, 6)


class Recurrent(nn.Module):
    """A convolution whose positions a recurrent layer reads one after another."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.conv = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 8, 1)
        self.memory, self.hidden, self.fc = kind(8, 5, batch_first=True), nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(torch.relu(self.stem(x))).flatten(2).transpose(1, 2)
        return self.fc(torch.relu(self.hidden(self.memory(x)[0][:, -1])))


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_recurrent_layers_keep_their_width_and_all_around_them_does_not(kind: Callable[..., nn.Module]) -> None:
    model = Recurrent(kind).eval()
    graph = ChannelGraph(model, images())
    assert {"stem", "hidden"} <= {group.name for group in graph.groups}
    graph.remove({"stem": [0], "hidden": [2, 3]})
    twin = without(model, "fc", [2, 3])
    with torch.no_grad():
        twin.conv.weight[:, [0]] = 0.0
    torch.testing.assert_close(graph.model(images()), twin(images()))
