"""The groups inside attention: what a head, a query dimension and a value dimension cut, alone and together."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from masked_dense import masked
from packed_attention import PackedAttention, packed_vit
from small_nets import example, tiny_vit
from torch import Tensor, nn
from torchvision.models import SwinTransformer

from cleanai_ray.errors import PruningError
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.graph.tracing import names_matching
from cleanai_ray.nn.open_attention import open_attention

MODELS = {"torchvision": tiny_vit, "packed": packed_vit}
ATTENTION = {"torchvision": "encoder.layers.encoder_layer_{}.self_attention", "packed": "blocks.{}.attn"}
KINDS = {"heads": np.arange(8, 16), "query": np.array([0, 3, 7]), "value": np.array([1, 2])}


def images() -> Tensor:
    return example(4, size=16, channels=3)


def stream(graph: ChannelGraph) -> str:
    return max(graph.groups, key=lambda group: len(group.members)).name


def assert_like_masked(model: nn.Module, graph: ChannelGraph) -> None:
    twin = masked(model, graph.kept("in"), graph.kept("out"))
    with torch.no_grad():
        expected, untouched, found = (network(images()) for network in (twin, model, graph.model))
    assert not torch.allclose(expected, untouched, atol=1e-3), "the mask changed nothing"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def all_groups(name: str, graph: ChannelGraph) -> dict[str, np.ndarray]:
    found = {f"{ATTENTION[name].format(0)}.{kind}": channels for kind, channels in KINDS.items()}
    found[f"{ATTENTION[name].format(1)}.heads"] = np.arange(16)
    found[f"{ATTENTION[name].format(1)}.value"] = np.array([5])
    found[stream(graph)] = np.array([0, 5, 8, 30])
    hidden = next(group.name for group in graph.groups if group.num_channels == 64)
    return {**found, hidden: np.array([0, 63])}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", [*KINDS, "stream"])
def test_one_group_is_like_a_masked_dense_model(name: str, kind: str) -> None:
    model = MODELS[name]()
    graph = ChannelGraph(model, images())
    group = stream(graph) if kind == "stream" else f"{ATTENTION[name].format(0)}.{kind}"
    graph.remove({group: KINDS.get(kind, np.array([2, 31]))})
    assert_like_masked(model, graph)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("at_once", [True, False])
def test_all_groups_together_are_like_a_masked_dense_model(name: str, at_once: bool) -> None:
    """In one step or one after another; groups of the same layer do not change one another's numbers."""
    model = MODELS[name]()
    graph = ChannelGraph(model, images())
    removed = all_groups(name, graph)
    for part in [removed] if at_once else [{group: channels} for group, channels in removed.items()]:
        graph.remove(part)
    assert_like_masked(model, graph)
    for group, channels in removed.items():
        gone = np.setdiff1d(np.arange(group_width(model, group)), graph.kept_channels[group])
        assert gone.tolist() == channels.tolist()
    first = graph.model.get_submodule(ATTENTION[name].format(0))
    assert (first.num_heads, first.heads.query_dim, first.heads.value_dim) == (3, 5, 6)
    assert (first.q_proj.weight.shape, first.v_proj.weight.shape) == ((15, 28), (18, 28))
    assert first.output.weight.shape == (28, 18)
    assert first.heads.scale == 8**-0.5


def group_width(model: nn.Module, name: str) -> int:
    return next(group.num_channels for group in ChannelGraph(model, images()).groups if group.name == name)


@pytest.mark.parametrize("name", MODELS)
def test_the_order_of_steps_does_not_matter(name: str) -> None:
    graphs = [ChannelGraph(MODELS[name](), images()) for _ in range(2)]
    removed = list(all_groups(name, graphs[0]).items())
    for graph, order in zip(graphs, (removed, removed[::-1]), strict=True):
        for group, channels in order:
            graph.remove({group: channels})
    first, second = (graph.model.state_dict() for graph in graphs)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize("name", MODELS)
def test_members_name_every_layer_and_stay_in_range(name: str) -> None:
    graph = ChannelGraph(MODELS[name](), images())
    prefix = ATTENTION[name].format(0)
    output = "out_proj" if name == "torchvision" else "proj"
    for step in ({}, {f"{prefix}.value": np.array([0, 1, 2])}, {f"{prefix}.heads": np.arange(8)}):
        graph.remove(step)
        groups = {group.name.removeprefix(f"{prefix}."): group for group in graph.groups}
        layers = {
            kind: {
                (member.layer.removeprefix(f"{prefix}."), member.side)
                for member in groups[kind].members
                if isinstance(graph.model.get_submodule(member.layer), nn.Linear)
            }
            for kind in KINDS
        }
        queries, values = {("q_proj", "out"), ("k_proj", "out")}, {("v_proj", "out"), (output, "in")}
        assert layers == {"heads": queries | values, "query": queries, "value": values}
        for kind in KINDS:
            group = groups[kind]
            for member in group.members:
                dimension = "in" if member.side == "in" else "out"
                assert member.channels.max() < graph.width(member.layer, dimension)
                assert set(member.roots) == set(range(group.num_channels))
    heads = groups["heads"]
    assert (heads.num_channels, heads.num_blocks, heads.num_units, heads.whole_heads) == (24, 8, 3, True)
    assert groups["value"].num_channels == 5


def test_normalised_queries_keep_their_dimensions_and_lose_heads() -> None:
    model = packed_vit(qk_norm=True)
    graph = ChannelGraph(model, images())
    kinds = {group.name.rpartition(".")[2] for group in graph.groups if ".attn." in group.name}
    assert kinds == {"heads", "value"}
    graph.remove({"blocks.0.attn.heads": np.arange(8), "blocks.1.attn.value": np.array([0, 7])})
    assert_like_masked(model, graph)


@pytest.mark.parametrize(
    ("ignored", "left"),
    [
        ("blocks.0.attn", set()),
        ("blocks.0.attn.heads", {"query", "value"}),
        ("blocks.0.attn.query", {"heads", "value"}),
        ("blocks.0.attn.value", {"heads", "query"}),
        ("blocks.0.attn.qkv", set()),
        ("*.0.attn.qkv", set()),
        ("*.attn.qk?", set()),
        ("blocks.0.attn.q_proj", {"value"}),
        ("blocks.0.attn.proj", {"heads", "query", "value"}),
    ],
)
def test_parts_of_attention_can_be_ignored(ignored: str, left: set[str]) -> None:
    graph = ChannelGraph(packed_vit(), images(), [ignored])
    prefix = "blocks.0.attn."
    assert {group.name.removeprefix(prefix) for group in graph.groups if group.name.startswith(prefix)} == left


def test_an_unknown_ignored_layer_is_named() -> None:
    with pytest.raises(PruningError, match=r"ignored_layers names 'blocks\.0\.qkv'"):
        ChannelGraph(packed_vit(), images(), ["blocks.0.qkv"])


class HalfOpened(nn.Module):
    """Two modules with packed layers, of which only the first can be opened."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = PackedAttention(12, 3), Windows.WindowAttention()


def test_a_pattern_of_packed_layers_names_opened_and_other_ones_alike() -> None:
    model = open_attention(HalfOpened().eval())
    named = ["one.q_proj", "one.k_proj", "one.v_proj", "other.qkv"]
    assert names_matching(model, ["*.qkv"]) == named
    assert names_matching(model, ["one.qkv", "*.qkv", "other.qkv"]) == named
    assert names_matching(open_attention(PackedAttention(12, 3)), ["qk?"]) == ["q_proj", "k_proj", "v_proj"]


@pytest.mark.parametrize("kind", [*KINDS, "all"])
def test_attention_in_windows_is_like_masked_attention(kind: str) -> None:
    """The biases by relative position go with their heads."""
    torch.manual_seed(0)
    model = SwinTransformer([2, 2], 24, [2], [3], [2, 2], num_classes=5, stochastic_depth_prob=0.0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    graph = ChannelGraph(model, images())
    chosen = KINDS if kind == "all" else {kind: KINDS[kind]}
    graph.remove({f"features.1.1.attn.{key}": channels for key, channels in chosen.items()})
    assert_like_masked(model, graph)
    attention = graph.model.get_submodule("features.1.1.attn")
    kept = [0, 2] if "heads" in chosen else [0, 1, 2]
    dense = model.get_submodule("features.1.1.attn").relative_position_bias_table
    assert torch.equal(attention.relative_position_bias_table, dense[:, kept])


class Windows(nn.Module):
    """Attention of a kind that is not known."""

    class WindowAttention(nn.Module):
        """Positions are shifted."""

        def __init__(self) -> None:
            super().__init__()
            self.num_heads = 3
            self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(2, (3, 3, 4)).permute(2, 0, 3, 1, 4).roll(1, 3)
            return self.proj((q @ k.transpose(2, 3)).softmax(3).matmul(v).transpose(1, 2).flatten(2))

    def __init__(self) -> None:
        super().__init__()
        self.first, self.attn, self.fc = nn.Linear(2, 12), self.WindowAttention(), nn.Linear(12, 3)
        self.hidden, self.back = nn.Linear(12, 9), nn.Linear(9, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.first(x.flatten(2).transpose(1, 2)))
        return self.fc((x + self.back(torch.relu(self.hidden(x)))).mean(dim=1))


def test_attention_that_keeps_its_heads_is_named() -> None:
    graph = ChannelGraph(Windows().eval(), example())
    assert "hidden" in {group.name for group in graph.groups}
    assert graph.notes == (
        "1 attention module ('attn', WindowAttention) keeps all heads and their dimensions: they are of no kind that "
        "can be narrowed",
        "layer 'attn.qkv' keeps its width: its channels are shuffled, or cut into blocks or heads",
    )
    assert ChannelGraph(packed_vit(), images()).notes == ()
    without_heads = Windows().eval()
    del without_heads.attn.num_heads  # as attention to channels has none, whatever its name
    assert ChannelGraph(without_heads, example()).notes == graph.notes[1:]
    assert ChannelGraph(tiny_vit(), images()).notes == ()


def test_gradients_are_cut_with_the_weights() -> None:
    model: Any = tiny_vit()
    graph = ChannelGraph(model, images())
    parameters = dict(graph.model.named_parameters())
    graph.set_gradients({name: value.detach().clone() for name, value in parameters.items()}, 1)
    graph.remove(all_groups("torchvision", graph))
    for name, value in graph.model.named_parameters():
        assert value.grad is not None, name
        assert torch.equal(value.grad, value), name


@pytest.mark.parametrize("importance", ["GroupMagnitudeImportance", "FPGMImportance", "LAMPImportance"])
def test_scores_of_torch_pruning_are_per_channel_of_the_group(importance: str) -> None:
    graph = ChannelGraph(packed_vit(), images())
    for group in graph.groups:
        scores = graph.torch_pruning_scores(group, importance)
        assert scores.shape == (group.num_channels,)
        assert (scores > 0).all()


def test_magnitude_of_a_query_dimension_is_that_of_its_rows_in_all_heads() -> None:
    graph = ChannelGraph(packed_vit(), images())
    group = next(group for group in graph.groups if group.name == "blocks.0.attn.query")
    attention = graph.model.get_submodule("blocks.0.attn")
    with torch.no_grad():
        norms = sum(
            layer.weight.double().square().sum(dim=1).view(4, 8).sum(dim=0)
            for layer in (attention.q_proj, attention.k_proj)
        )
    scores = graph.torch_pruning_scores(group, "GroupMagnitudeImportance")
    torch.testing.assert_close(scores / scores.mean(), norms / norms.mean(), rtol=1e-5, atol=1e-6)


def test_a_copy_of_the_graph_takes_the_same_steps() -> None:
    model = packed_vit()
    graph = ChannelGraph(model, images())
    graph.remove({"blocks.0.attn.query": KINDS["query"], "blocks.1.attn.value": KINDS["value"]})
    graph.remove({"blocks.1.attn.heads": KINDS["heads"]})
    other = graph.rebuild(copy.deepcopy(model))
    assert {name: kept.tolist() for name, kept in other.kept_channels.items()} == {
        name: kept.tolist() for name, kept in graph.kept_channels.items()
    }
