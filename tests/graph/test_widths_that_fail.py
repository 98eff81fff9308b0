"""A width at which a model does not run, or is wrong: after the error all is as before, and pruning goes on."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import cleanai_ray as cleanai
from cleanai_ray.errors import PruningError
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.graph.undoing import restored_on_error

Between = Callable[[Tensor, Tensor], Tensor]


def images() -> Tensor:
    return torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))


def as_wide(one: Tensor, other: Tensor) -> Tensor:
    """Both must be equally wide, as Segformer's maps must."""
    if one.shape[1] != other.shape[1]:
        raise ValueError("unequal widths")
    return torch.cat([one, other], 1)


def not_at_six(one: Tensor, other: Tensor) -> Tensor:
    """What trials leave, which is five of eight channels, passes."""
    if one.shape[1] == 6:
        raise ValueError("six channels")
    return torch.cat([one, other], 1)


def wrong_at_six(one: Tensor, other: Tensor) -> Tensor:
    return torch.cat([one.roll(1, 1) if one.shape[1] == 6 else one, other], 1)


class Net(nn.Module):
    """Two convolutions whose maps meet, one that reads both, and one that reads that."""

    def __init__(self, between: Between) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.between, self.one, self.other = between, nn.Conv2d(2, 8, 1), nn.Conv2d(2, 8, 1)
        self.read, self.last, self.fc = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 12, 1), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self.one(x).relu(), self.other(x).relu())
        return self.fc(self.last(self.read(x).relu()).relu().mean((2, 3)))


def test_after_an_error_the_graph_and_its_model_are_as_before() -> None:
    graph = ChannelGraph(Net(not_at_six).eval(), images())
    graph.remove({"one": [1], "read": [0]})
    before, widths = copy.deepcopy(graph.model.state_dict()), {group.name: group.num_channels for group in graph.groups}
    with pytest.raises(PruningError, match=r"six channels; name 'one' in ignored_layers"):
        graph.remove({"one": [0], "last": [2]})
    assert {group.name: group.num_channels for group in graph.groups} == widths
    state = graph.model.state_dict()
    assert state.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in state.items())
    assert graph.width("read", "in") == 15
    graph.remove({"one": [0, 1, 2], "last": [2]})
    assert graph.kept("out")["one"].tolist() == [4, 5, 6, 7]
    twin = graph.rebuild(Net(not_at_six).eval())
    torch.testing.assert_close(twin.model(images()), graph.model(images()))


@pytest.mark.parametrize("between", [not_at_six, wrong_at_six], ids=["does not run", "is wrong"])
def test_the_group_at_fault_keeps_its_width_and_the_others_are_pruned(between: Between) -> None:
    graph = ChannelGraph(Net(between).eval(), images())
    assert {group.name for group in graph.groups} == {"one", "other", "read", "last"}
    result = cleanai.prune(Net(between).eval(), images(), method="magnitude", ratio=0.25, round_to=None)
    gone = {group.name: len(group.removed) for group in result.plan.groups}
    assert gone == {"one": 0, "other": 2, "read": 4, "last": 3}
    (told,) = result.plan.warnings
    assert told.startswith("layer 'one' keeps its width: ")


@pytest.mark.parametrize("steps", [1, 2])
def test_a_ratio_of_a_layer_that_must_keep_its_width_is_told_and_the_others_are_pruned(steps: int) -> None:
    """One that names no layer is refused as ever."""
    model, options = Net(not_at_six).eval(), {"method": "magnitude", "ratio": 0.25, "round_to": None, "steps": steps}
    ratios = {"one": 0.234, "read": 0.5}
    result = cleanai.prune(model, images(), layer_ratios=ratios, **options)
    gone = {group.name: len(group.removed) for group in result.plan.groups}
    # Six of eight channels are 0.766 of them; of two steps the first keeps the root of it, seven.
    assert gone == {"one": steps - 1, "other": 2, "read": 8, "last": 3}
    assert any(told.startswith("layer 'one' keeps its width: ") for told in result.plan.warnings)
    with pytest.raises(PruningError, match="layer_ratios names 'none', and no prunable layer's name starts with it"):
        cleanai.prune(model, images(), layer_ratios={**ratios, "none": 0.5}, **options)


def test_groups_that_must_be_equally_wide_keep_their_width_where_they_would_not_be() -> None:
    """In trials both lose as much, and pass."""
    model = Net(as_wide).eval()
    graph = ChannelGraph(model, images())
    with pytest.raises(PruningError, match="does not run"):
        graph.remove({"one": [0]})
    told = graph.try_to_remove({"one": [0], "read": [1, 2]})
    assert {group.name for group in graph.groups} == {"other", "read", "last"}
    assert graph.notes == tuple(told)
    assert graph.try_to_remove({"read": [1, 2]}) == []
    assert graph.model.get_submodule("read").out_channels == 14
    twin = graph.rebuild(model)
    assert (twin.notes, [group.name for group in twin.groups]) == (graph.notes, [group.name for group in graph.groups])


def test_an_error_that_is_not_of_a_group_is_raised() -> None:
    graph = ChannelGraph(Net(as_wide).eval(), images())
    with pytest.raises(PruningError, match="which the model does not have"):
        graph.try_to_remove({"another": [0]})


def test_a_budget_out_of_reach_names_the_layers_that_stay() -> None:
    """Both maps stay, 2 x 2 x 8 weights; of the others 16 x 2 and 2 x 2, all at 16 pixels; and 2 x 3 of the last."""
    model = Net(lambda one, other: one.roll(1, 1).add(other).repeat(1, 2, 1, 1)).eval()
    told = r"the budget cannot be met: .* leaves 1094, .*; layer 'other' keeps its width: "
    with pytest.raises(PruningError, match=told):
        cleanai.prune(model, images(), method="magnitude", budget={"macs": 0.05}, round_to=None)


def test_attributes_come_back_and_tensors_stay_the_same() -> None:
    layer, books = nn.Linear(3, 2), {"kept": np.arange(2)}
    weight, layer.books = layer.weight, books

    def fail() -> None:
        with restored_on_error(layer):
            layer.weight, layer.out_features, layer.more = nn.Parameter(torch.zeros(1, 3)), 1, "more"
            layer.books["kept"] = np.arange(1)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert layer.weight is weight
    assert (layer.out_features, hasattr(layer, "more")) == (2, False)
    assert len(layer.books["kept"]) == 2
    with restored_on_error(layer):
        layer.out_features = 1
    assert layer.out_features == 1


@pytest.mark.parametrize(("outputs", "told"), [(8, False), (16, True)])
def test_channels_that_can_only_go_together_are_told(outputs: int, told: bool) -> None:
    """A convolution of one input and two outputs in each of its groups couples all of its inputs."""
    layers = [nn.Conv2d(2, 8, 1), nn.Conv2d(8, outputs, 3, groups=8), nn.Conv2d(outputs, 6, 1), nn.Conv2d(6, 3, 1)]
    notes = ChannelGraph(nn.Sequential(*layers).eval(), images()).notes
    assert any("'0'" in note and "all its channels are coupled" in note for note in notes) == told


class Scaled(nn.Module):
    """A branch that mixes channels, under a scale that lets nothing of it pass at first."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.conv, self.read, self.scale = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 3, 1), nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.read(x + self.scale * x.roll(1, 1)).mean((2, 3))


@pytest.mark.parametrize("shape", [(), (1,)], ids=["a number", "one value"])
def test_a_scale_of_zero_hides_no_fault(shape: tuple[int, ...]) -> None:
    graph = ChannelGraph(Scaled(shape).eval(), images())
    assert graph.groups == ()
    (note,) = graph.notes
    assert note.startswith("layer 'conv' keeps its width: ")
