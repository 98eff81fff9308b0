"""The limits of tracing: shuffled channels, windows and heads keep their width, and errors name the layer."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import shufflenet_v2_x0_5

from cleanai_ray.errors import PruningError
from cleanai_ray.graph.explaining import explain
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.graph.readiness import told_together

Between = Callable[[Tensor], Tensor]


def images() -> Tensor:
    return torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))


class Shuffled(nn.Module):
    """Two convolutions with 8 channels, and something between them that leaves 8 in another order."""

    def __init__(self, between: Between) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 6, 1), nn.Linear(6, 3)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(functional.relu(self.first(x)))
        return self.fc(functional.relu(self.second(x)).mean(dim=(2, 3)))


def in_five_dimensions(x: Tensor) -> Tensor:
    num, channels, height, width = x.shape
    return x.view(num, 2, channels // 2, height, width).transpose(1, 2).reshape(num, channels, height, width)


def in_four_dimensions(x: Tensor) -> Tensor:
    num, channels, height, width = x.shape
    return x.view(num, 2, channels // 2, height * width).transpose(1, 2).reshape(num, channels, height, width)


def of_any_width(x: Tensor) -> Tensor:
    """A shuffle that would run on fewer channels, too, and mix others than it did."""
    return x.unflatten(1, (-1, 2)).permute(0, 2, 1, 3, 4).flatten(1, 2)


def summed_over_blocks(x: Tensor) -> Tensor:
    return x.unflatten(1, (2, -1)).sum(dim=1).repeat(1, 2, 1, 1)


def through_pixels(x: Tensor) -> Tensor:
    return functional.pixel_unshuffle(functional.pixel_shuffle(x, 2), 2)


SHUFFLES = [
    in_five_dimensions,
    in_four_dimensions,
    of_any_width,
    summed_over_blocks,
    through_pixels,
    nn.ChannelShuffle(2),
]


@pytest.mark.parametrize("between", SHUFFLES, ids=lambda between: getattr(between, "__name__", "ChannelShuffle"))
def test_a_layer_whose_channels_are_shuffled_keeps_its_width(between: Between) -> None:
    torch.manual_seed(0)
    model = Shuffled(between)
    graph = ChannelGraph(model, images())
    assert [group.name for group in graph.groups] == ["second"]
    graph.remove({"second": [1, 4]})
    silenced = copy.deepcopy(model)
    silenced.fc.weight.data[:, [1, 4]] = 0
    torch.testing.assert_close(graph.model(images()), silenced(images()))


def test_what_does_not_shuffle_is_followed() -> None:
    graph = ChannelGraph(Shuffled(nn.MaxPool2d(2)), images())
    assert {group.name for group in graph.groups} == {"first", "second"}


class Attention(nn.Module):
    """Tokens of a stem, one attention over two heads from one Linear, and a hidden layer; no norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 1)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.hidden, self.fc = nn.Linear(8, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        num, length, _ = x.shape
        query, key, value = self.qkv(x).reshape(num, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        x = x + self.out(mixed.transpose(1, 2).reshape(num, length, 8))
        return self.fc(functional.gelu(self.hidden(x)).mean(dim=1))


def test_heads_keep_their_width_and_the_stream_around_them_does_not() -> None:
    torch.manual_seed(0)
    model = Attention()
    graph = ChannelGraph(model, images())
    cuts = {frozenset((member.layer, member.side) for member in group.members) for group in graph.groups}
    assert cuts == {
        frozenset({("stem", "out"), ("out", "out"), ("qkv", "in"), ("hidden", "in")}),
        frozenset({("hidden", "out"), ("fc", "in")}),
    }
    stream = next(group.name for group in graph.groups if group.num_channels == 8)
    graph.remove({stream: [2, 7], "hidden": [0]})
    silenced = copy.deepcopy(model)
    for layer, channels in (("qkv", [2, 7]), ("hidden", [2, 7]), ("fc", [0])):
        silenced.get_submodule(layer).weight.data[:, channels] = 0
    torch.testing.assert_close(graph.model(images()), silenced(images()))


def test_volumes_are_not_blocks() -> None:
    """All that a network of Conv3d computes has five dimensions, until it is flattened."""
    model = nn.Sequential(nn.Conv3d(1, 4, 1), nn.BatchNorm3d(4), nn.Conv3d(4, 5, 1), nn.Flatten(), nn.Linear(40, 2))
    graph = ChannelGraph(model, torch.randn(1, 1, 2, 2, 2))
    assert {group.name: group.num_channels for group in graph.groups} == {"0": 4, "2": 5}


def test_an_error_in_a_layer_names_it() -> None:
    with pytest.raises(PruningError, match=r"cannot be traced with the example inputs: in layer 'first' \(Conv2d\): "):
        ChannelGraph(Shuffled(nn.Identity()), torch.zeros(1, 7, 4, 4))


class Fixed(Shuffled):
    """The same, with the first four and the last four of eight channels."""

    def __init__(self) -> None:
        super().__init__(lambda x: torch.cat([x[:, :4], x[:, -4:]], dim=1))


def test_a_smaller_model_that_does_not_run_says_where_and_what_to_do() -> None:
    graph = ChannelGraph(Fixed(), images(), check=False)
    expected = r"the pruned model does not run: in layer 'second' \(Conv2d\): .* ignored_layers"
    with pytest.raises(PruningError, match=expected):
        graph.remove({"first": [0]})
    assert {group.name for group in ChannelGraph(Fixed(), images(), ["first"]).groups} == {"second"}


def test_a_layer_whose_width_the_code_relies_on_keeps_it_alone() -> None:
    graph = ChannelGraph(Fixed(), images())
    assert {group.name for group in graph.groups} == {"second"}
    (note,) = graph.notes
    assert note.startswith("layer 'first' keeps its width: the model does not run without some of its channels: ")


def test_an_error_of_torch_pruning_is_told_with_the_operation_and_the_layers_before_it() -> None:
    """Its own tracing, which does not stop at blocks, fails on the shuffles of ShuffleNet."""
    model = shufflenet_v2_x0_5()
    with pytest.raises(ZeroDivisionError) as caught:
        tp.DependencyGraph().build_dependency(model, example_inputs=torch.zeros(1, 3, 32, 32), verbose=False)
    told = explain(caught.value, model)
    assert re.fullmatch(
        r"at operation \w*ViewBackward0 behind layer 'stage4\.\d\.branch.*: integer division.*", told
    ), told


class NotSeven(nn.Module):
    """Two layers, the first of which must not have seven channels, which no trial leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if x.shape[1] == 7:
            raise ValueError("seven channels")
        return self.fc(torch.relu(self.second(x)).mean((2, 3)))


def test_a_refusal_names_the_layer_to_ignore_and_not_the_one_that_fails() -> None:
    graph = ChannelGraph(NotSeven().eval(), images())
    with pytest.raises(PruningError, match=r"seven channels; name 'first' in ignored_layers"):
        graph.remove({"first": [0], "second": [0, 1, 2]})
    graph = ChannelGraph(NotSeven().eval(), images(), ["first"])
    graph.remove({"second": [0, 1, 2]})


def test_only_the_groups_that_are_needed_are_tried() -> None:
    graph = ChannelGraph(NotSeven().eval(), images(), only=["second"])
    assert [group.name for group in graph.groups] == ["second"]
    twin = graph.rebuild(NotSeven().eval())
    assert [group.name for group in twin.groups] == ["second"]
    twin.remove({"second": [0]})
    assert graph.groups[0].num_channels == 8
    assert twin.groups[0].num_channels == 7


def test_an_operation_through_which_indices_cannot_be_mapped_costs_its_layers_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mapping = tp.dependency.index_mapping

    def broken(graph: object, node: object) -> None:
        raise IndexError("no such chunk")

    monkeypatch.setattr(mapping, "update_split_index_mapping", broken)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.wide, self.fc = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 8, 1), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            one, two = self.wide(torch.relu(self.stem(x))).chunk(2, 1)
            return self.fc((one * two).mean((2, 3)))

    graph = ChannelGraph(Net().eval(), images())
    assert [group.name for group in graph.groups] == ["stem"]
    assert graph.notes == (
        "layer 'wide' keeps its width: its channels cannot be followed through operation SplitBackward0 "
        "(no such chunk)",
    )


def test_a_batch_is_one_input_also_where_its_samples_would_pass_as_several() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.fc = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
            assert other is None
            return self.fc(torch.relu(self.first(x)))

    graph = ChannelGraph(Optional().eval(), torch.randn(2, 5))
    assert [group.name for group in graph.groups] == ["first"]


def test_layers_that_keep_their_width_for_one_reason_are_told_together() -> None:
    assert told_together({"a": "x", "b": "y", "c": "x"}) == [
        "2 layers ('a', 'c') keep their width: x",
        "layer 'b' keeps its width: y",
    ]
    assert told_together(dict.fromkeys("abcdefgh", "x")) == [
        "8 layers ('a', 'b', 'c', 'd', 'e', 'f' and 2 others) keep their width: x"
    ]
