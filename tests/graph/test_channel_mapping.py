"""Index mappings: surgery does to the outputs exactly what zeroing the same channels by hand does."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from small_nets import build, example, tiny_vit
from torch import Tensor, nn

from cleanai_ray.errors import PruningError
from cleanai_ray.graph.graph import ChannelGraph, ChannelGroup
from cleanai_ray.registry import MODELS

Removed = dict[str, list[int]]

# net, what is removed from which group, and the same by hand: output channels of which modules become zero.
CASES: list[tuple[str, Removed, Removed]] = [
    ("plain", {"conv1": [0, 4]}, {"conv1": [0, 4], "bn1": [0, 4]}),
    ("plain", {"conv2": [1, 2, 7]}, {"conv2": [1, 2, 7], "bn2": [1, 2, 7]}),
    ("residual", {"conv2": [1, 5]}, {"stem": [1, 5], "bn0": [1, 5], "conv2": [1, 5], "bn2": [1, 5]}),
    ("residual", {"conv1": [0, 3, 7], "head": [2]}, {"conv1": [0, 3, 7], "bn1": [0, 3, 7], "head": [2]}),
    (
        "depthwise",
        {"depthwise": [2, 3, 6]},
        {"expand": [2, 3, 6], "bn1": [2, 3, 6], "depthwise": [2, 3, 6], "bn2": [2, 3, 6]},
    ),
    ("concat", {"stem": [1]}, {"stem": [1], "bn": [1]}),
    ("concat", {"left": [0, 4]}, {"left": [0, 4], "bn": [4, 8]}),
    ("concat", {"right": [2, 3]}, {"right": [2, 3], "bn": [11, 12]}),
    (
        "concat",
        {"stem": [1, 3], "left": [0, 4], "right": [2, 3], "mix": [6]},
        {"stem": [1, 3], "left": [0, 4], "right": [2, 3], "bn": [1, 3, 4, 8, 11, 12], "mix": [6]},
    ),
    ("grouped", {"conv1": [0, 3, 4, 7]}, {"conv1": [0, 3, 4, 7], "bn1": [0, 3, 4, 7]}),
    ("grouped", {"grouped": [1, 2, 7, 8]}, {"grouped": [1, 2, 7, 8], "bn2": [1, 2, 7, 8]}),
    (
        "grouped",
        {"conv1": [1, 5], "grouped": [0, 5, 6, 11], "conv3": [3]},
        {"conv1": [1, 5], "bn1": [1, 5], "grouped": [0, 5, 6, 11], "bn2": [0, 5, 6, 11], "conv3": [3]},
    ),
    ("flattened", {"conv2": [0, 3]}, {"conv2": [0, 3]}),
    ("flattened", {"conv1": [5], "conv2": [2], "fc1": [2, 9]}, {"conv1": [5], "conv2": [2], "fc1": [2, 9]}),
]
IDS = [f"{net}-{'+'.join(removed)}" for net, removed, _ in CASES]


@torch.no_grad()
def zeroed(model: nn.Module, channels: Removed) -> Any:
    twin = copy.deepcopy(model)
    for name, indices in channels.items():
        module: Any = twin.get_submodule(name)
        module.weight[indices] = 0.0
        module.bias[indices] = 0.0
    return twin


def cut(model: nn.Module, removed: Removed, inputs: Tensor) -> ChannelGraph:
    graph = ChannelGraph(model, inputs)
    graph.remove(removed)
    return graph


@pytest.mark.parametrize(("net", "removed", "by_hand"), CASES, ids=IDS)
def test_cutting_channels_is_zeroing_them(net: str, removed: Removed, by_hand: Removed) -> None:
    model, images = build(net), example(5)
    graph = cut(model, removed, example())
    with torch.no_grad():
        expected = zeroed(model, by_hand)(images)
        torch.testing.assert_close(graph.model(images), expected, rtol=1e-5, atol=1e-5)
        assert (expected - model(images)).abs().max() > 1e-3, "the channels matter to the outputs"


@pytest.mark.parametrize(("net", "removed", "by_hand"), CASES, ids=IDS)
def test_cutting_one_group_after_the_other_is_the_same(net: str, removed: Removed, by_hand: Removed) -> None:
    images, graph = example(5), ChannelGraph(build(net), example())
    for name, channels in removed.items():
        graph.remove({name: channels})
    with torch.no_grad():
        expected = cut(build(net), removed, example()).model(images)
        assert torch.equal(graph.model(images), expected)


@pytest.mark.parametrize(("net", "removed", "by_hand"), CASES, ids=IDS)
def test_what_is_kept_is_known_by_its_dense_numbers(net: str, removed: Removed, by_hand: Removed) -> None:
    """Each pruned tensor is the dense one at the kept indices that the graph reports."""
    model = build(net)
    graph = cut(model, removed, example())
    inputs, outputs = graph.kept("in"), graph.kept("out")
    for name, indices in by_hand.items():
        width = model.get_submodule(name).weight.shape[0]
        assert outputs[name].tolist() == [i for i in range(width) if i not in indices]
    for name, module in graph.model.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        weight = model.get_submodule(name).weight
        if name in outputs:
            weight = weight[torch.as_tensor(outputs[name])]
        if name in inputs and getattr(module, "groups", 1) == 1:
            weight = weight[:, torch.as_tensor(inputs[name])]
        if getattr(module, "groups", 1) == 1:
            assert torch.equal(module.weight, weight), name


def test_channels_kept_over_two_cuts_are_in_dense_numbers() -> None:
    graph = ChannelGraph(build("concat"), example())
    graph.remove({"left": [1], "stem": [0]})
    # Present channels of `left` are dense 0, 2, 3, 4: the present number 2 is dense 3.
    graph.remove({"left": [2]})
    assert graph.kept_channels["left"].tolist() == [0, 2, 4]
    assert graph.kept("out")["left"].tolist() == [0, 2, 4]
    assert graph.kept("in")["mix"].tolist() == [1, 2, 3, 4, 6, 8, 9, 10, 11, 12, 13, 14]
    expected = cut(build("concat"), {"left": [1, 3], "stem": [0]}, example())
    images = example(5)
    with torch.no_grad():
        assert torch.equal(graph.model(images), expected.model(images))


def test_a_flattened_channel_takes_all_its_features() -> None:
    graph = cut(build("flattened"), {"conv2": [1, 3]}, example())
    assert graph.kept("in")["fc1"].tolist() == [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19]
    assert graph.model.fc1.in_features == 12


class Doubled(nn.Module):
    """One feature map concatenated with itself, as some multi-scale heads do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(12)
        self.mix = nn.Conv2d(12, 4, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        x = torch.relu(self.bn(torch.cat([x, 2 * x], dim=1)))
        return self.fc(torch.relu(self.mix(x)).mean(dim=(2, 3)))


def test_channels_that_a_layer_reads_twice() -> None:
    torch.manual_seed(0)
    model, images = Doubled().eval(), example(5)
    graph = cut(model, {"conv": [1, 4]}, example())
    expected = zeroed(model, {"conv": [1, 4], "bn": [1, 4, 7, 10]})(images)
    torch.testing.assert_close(graph.model(images), expected, rtol=1e-5, atol=1e-5)
    assert graph.kept("in")["mix"].tolist() == [0, 2, 3, 5, 6, 8, 9, 11]


class TwoGroupings(nn.Module):
    """Channels that one convolution reads in 2 and another in 3 blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 12, 3, padding=1)
        self.halves = nn.Conv2d(12, 4, 1, groups=2)
        self.thirds = nn.Conv2d(12, 6, 1, groups=3)
        self.fc = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        return self.fc(torch.cat([self.halves(x), self.thirds(x)], dim=1).relu().mean(dim=(2, 3)))


def test_blocks_of_two_sizes_stay_equal_in_both() -> None:
    torch.manual_seed(0)
    model, images = TwoGroupings().eval(), example(5)
    group = next(group for group in ChannelGraph(model, example()).groups if group.name == "conv")
    assert (group.num_blocks, group.num_units) == (6, 2)
    channels = group.expand(np.array([1])).tolist()
    assert channels == [1, 3, 5, 7, 9, 11]
    graph = cut(model, {"conv": channels}, example())
    expected = zeroed(model, {"conv": channels})(images)
    torch.testing.assert_close(graph.model(images), expected, rtol=1e-5, atol=1e-5)


def test_the_hidden_layer_of_a_transformer_block() -> None:
    """GELU(0) = 0, so a hidden feature that is zeroed contributes nothing."""
    model, images = tiny_vit(), example(4, size=16, channels=3)
    name = "encoder.layers.encoder_layer_0.mlp.0"
    graph = cut(model, {name: [0, 9, 63]}, images)
    with torch.no_grad():
        expected = zeroed(model, {name: [0, 9, 63]})(images)
        torch.testing.assert_close(graph.model(images), expected, rtol=1e-5, atol=1e-5)
    assert graph.kept("in")["encoder.layers.encoder_layer_0.mlp.3"].tolist() == [
        i for i in range(64) if i not in (0, 9, 63)
    ]


class FixedAttention(nn.Module):
    """Attention that stays packed, because it attends to a learnt key as well; it reads what a convolution computes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 12, 2, stride=2)
        self.attention = nn.MultiheadAttention(12, 4, batch_first=True, add_bias_kv=True)
        self.fc = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        return self.fc(self.attention(tokens, tokens, tokens)[0].mean(dim=1))


def test_packed_attention_keeps_its_heads_equally_wide() -> None:
    graph = ChannelGraph(FixedAttention().eval(), example())
    group = next(group for group in graph.groups if any(member.layer == "attention" for member in group.members))
    assert (group.num_channels, group.num_blocks) == (12, 4)
    channels = group.expand(np.array([0, 2]))
    assert channels.tolist() == [0, 2, 3, 5, 6, 8, 9, 11]


def test_the_stream_of_a_transformer_may_have_any_width() -> None:
    model, images = tiny_vit(), example(2, size=16, channels=3)
    graph = ChannelGraph(model, images)
    stream = max(graph.groups, key=lambda group: len(group.members))
    assert (stream.num_channels, stream.num_blocks) == (32, 1)
    graph.remove({stream.name: np.array([0, 5, 31])})
    attention = graph.model.encoder.layers[0].self_attention
    assert (attention.q_proj.in_features, attention.q_proj.out_features, attention.num_heads) == (29, 32, 4)
    assert graph.model.class_token.shape == (1, 1, 29)
    assert graph.model.encoder.pos_embedding.shape == (1, 17, 29)
    assert graph.model(images).shape == (2, 5)


def test_resnet20_streams() -> None:
    """The second stage's stream: both ends of every block in it, the projection, and the next stage's readers."""
    torch.manual_seed(0)
    model = MODELS.get("resnet20")().build(num_classes=10, input_shape=(1, 16, 16)).eval()
    images = example(3, size=16, channels=1)
    gone = [0, 7, 30]
    names = ["layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv2", "layer2.2.conv2"]
    graph = ChannelGraph(model, images)
    group = next(g for g in graph.groups if any(m.layer == names[0] and m.side == "out" for m in g.members))
    assert sorted(m.layer for m in group.members if m.side == "out") == sorted(names)
    graph.remove({group.name: gone})
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name in names:
            norm = name.replace("conv2", "bn2").replace("downsample.0", "downsample.1")
            twin.get_submodule(name).weight[gone] = 0.0
            twin.get_submodule(norm).weight[gone] = 0.0
            twin.get_submodule(norm).bias[gone] = 0.0
        torch.testing.assert_close(graph.model(images), twin(images), rtol=1e-5, atol=1e-5)


def test_the_outputs_and_ignored_layers_are_not_prunable() -> None:
    assert {group.name for group in ChannelGraph(build("plain"), example()).groups} == {"conv1", "conv2"}
    assert {group.name for group in ChannelGraph(build("plain"), example(), ["conv2"]).groups} == {"conv1"}
    # Ignoring one producer of a stream keeps the whole stream.
    for layer in ("stem", "conv2"):
        names = {group.name for group in ChannelGraph(build("residual"), example(), [layer]).groups}
        assert names == {"conv1", "head"}
    with pytest.raises(PruningError, match="ignored_layers names 'conv9', which is not a module"):
        ChannelGraph(build("plain"), example(), ["conv9"])


def test_a_model_with_nothing_to_prune_has_no_group() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(128, 3))
    assert ChannelGraph(model, example()).groups == ()


def test_units_are_the_same_positions_of_every_block() -> None:
    group = ChannelGroup(name="g", num_channels=12, num_blocks=3, members=())
    assert group.num_units == 4
    assert group.expand(np.array([0, 3])).tolist() == [0, 3, 4, 7, 8, 11]


def test_the_graph_works_on_a_copy() -> None:
    model = build("residual")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = cut(model, {"conv1": [0]}, example())
    assert graph.model is not model
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_unknown_groups_and_untraceable_models_are_refused() -> None:
    graph = ChannelGraph(build("plain"), example())
    with pytest.raises(PruningError, match="group 'conv9', which the model does not have"):
        graph.remove({"conv9": [0]})
    with pytest.raises(PruningError, match="cannot be traced with the example inputs"):
        ChannelGraph(build("plain"), torch.zeros(1, 7, 8, 8))
    with pytest.raises(PruningError, match="example_inputs holds 2 values; allowed: one tensor, or a tuple of one"):
        ChannelGraph(build("plain"), (example(), example()))


class GroupedOverConcat(nn.Module):
    """A convolution in two blocks that reads two branches side by side."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.left = nn.Conv2d(2, 6, 1)
        self.right = nn.Conv2d(2, 6, 1)
        self.norm = nn.GroupNorm(3, 12) if norm else nn.Identity()
        self.blocks = nn.Conv2d(12, 8, 1, groups=1 if norm else 2)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(torch.cat([self.left(x), self.right(x)], dim=1))
        return self.fc(self.blocks(x).mean(dim=(2, 3)))


@pytest.mark.parametrize("norm", [False, True])
def test_branches_that_share_a_layer_with_blocks_keep_their_width(norm: bool) -> None:
    """Cutting one branch would leave the blocks of the shared layer unequal."""
    graph = ChannelGraph(GroupedOverConcat(norm), example())
    assert {group.name for group in graph.groups} == {"blocks"}
    graph.remove({"blocks": [0, 4]})
    assert graph.model(example()).shape == (2, 3)


class Normalised(nn.Module):
    """A group norm in four blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 1)
        self.norm = nn.GroupNorm(4, 8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.norm(self.conv(x))).mean(dim=(2, 3)))


def test_a_group_norm_keeps_its_blocks_equally_wide() -> None:
    torch.manual_seed(0)
    model, images = Normalised().eval(), example(5)
    assert model.conv.bias is not None
    graph = ChannelGraph(model, example())
    (group,) = graph.groups
    assert (group.num_blocks, group.num_units) == (4, 2)
    graph.remove({"conv": group.expand(np.array([1]))})
    assert (graph.model.norm.num_groups, graph.model.norm.num_channels) == (4, 4)
    # Each block of one channel is normalised by itself.
    kept = torch.tensor([0, 2, 4, 6])
    x = torch.nn.functional.conv2d(images, model.conv.weight[kept], model.conv.bias[kept])
    x = (x - x.mean(dim=(2, 3), keepdim=True)) / (x.var(dim=(2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
    expected = torch.relu(x).mean(dim=(2, 3)) @ model.fc.weight[:, kept].T + model.fc.bias
    torch.testing.assert_close(graph.model(images), expected, rtol=1e-5, atol=1e-5)
