"""Segments: they begin where nothing gets past, hold every layer, and can be run by themselves."""

from __future__ import annotations

import copy

import pytest
import torch
from small_nets import NETS, build, example, tiny_vit
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet18

from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.models.resnet20 import ResNetCifar
from cleanai_ray.nn.consumers import is_consumer
from cleanai_ray.nn.hooks import count_hooks
from cleanai_ray.nn.replay import Replay
from cleanai_ray.nn.segments import Segment, find_segments, group_segments, merge_segments


def images(shape: tuple[int, ...] = (4, 3, 32, 32)) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def names(model: nn.Module, inputs: Tensor) -> list[str]:
    return [segment.name for segment in find_segments(model, inputs)]


def blocks(model: nn.Module, inputs: Tensor) -> list[list[str]]:
    segments = find_segments(model, inputs)
    return [[segments[place].name for place in block] for block in group_segments(segments)]


class Tokens(nn.Module):
    """Two embeddings that are added, a block with a shortcut, and a classifier for every token."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(7, 6), nn.Embedding(5, 6)
        self.norm = nn.LayerNorm(6)
        self.inner = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.norm(self.words(tokens) + self.places(torch.arange(tokens.shape[1])))
        return self.head(x + self.inner(x))


class Glue(nn.Module):
    """Layers in a row, and something between them that only a pass of the whole model knows."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b, self.c, self.d = (nn.Linear(6, 6) for _ in range(4))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        number, early = len(x), x
        x = self.a(x)
        if self.kind == "in place":
            x += 1
        mask = x.detach() > 0
        if self.kind == "own input":
            return self.d(self.relu(self.c(self.b(x.reshape(number, -1)))))
        x = self.relu(self.b(x))
        if self.kind == "mask":
            x = x * mask
        x = self.c(x)
        if self.kind == "input":
            x = x + early.detach()
        return self.d(torch.flatten(x.view(number, 2, 3), 1))


def test_a_residual_network_is_cut_around_its_blocks() -> None:
    stem = ["conv1", "bn1", "relu", "maxpool"]
    stages = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    assert names(resnet18(), images()) == [*stem, *stages, "avgpool", "fc"]
    assert blocks(resnet18(), images()) == [stem, *([name] for name in stages[:-1]), ["layer4.1", "avgpool"], ["fc"]]
    small = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2)]
    assert names(ResNetCifar(5, 3, (4, 8, 8)), images()) == ["conv1", "bn1", "relu", *small, "avgpool", "fc"]


def test_a_transformer_is_cut_into_its_layers() -> None:
    layers = [f"encoder.layers.encoder_layer_{index}" for index in (0, 1)]
    found = find_segments(tiny_vit(), images((2, 3, 16, 16)))
    assert [segment.name for segment in found] == ["conv_proj", *layers, "encoder.ln", "heads.head"]
    assert blocks(tiny_vit(), images((2, 3, 16, 16))) == [
        ["conv_proj"],
        *([layer] for layer in layers),
        ["encoder.ln", "heads.head"],
    ]
    parts = ("ln_1", "self_attention", "ln_2", "mlp.0", "mlp.3")
    assert set(found[1].layers) == {f"{layers[0]}.{part}" for part in parts}
    assert set(found[1].consumers) == {f"{layers[0]}.{part}" for part in ("self_attention", "mlp.0", "mlp.3")}


def test_a_network_without_shortcuts_is_cut_at_every_layer_and_grouped_by_its_activations() -> None:
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)).eval()
    assert names(net, images()) == ["0", "1", "2", "3", "4", "5", "7", "8", "9"]
    assert blocks(net, images()) == [["0", "1", "2", "3"], ["4", "5", "7", "8"], ["9"]]


def test_functional_parts_belong_to_the_segment_before_them() -> None:
    stem, norm, head, classifier = find_segments(build("residual"), example())
    assert [segment.name for segment in (stem, norm, head, classifier)] == ["stem", "bn0", "head", "fc"]
    assert norm.layers == ("bn0", "conv1", "bn1", "conv2", "bn2")
    assert norm.consumers == ("conv1", "conv2")
    assert norm.norms == ("bn0", "bn1", "bn2")
    assert [segment.nonlinear for segment in (stem, norm, head, classifier)] == [False, True, True, False]
    assert names(build("plain"), example()) == ["conv1", "bn1", "conv2", "bn2", "fc"]
    assert blocks(build("plain"), example()) == [["conv1", "bn1"], ["conv2", "bn2"], ["fc"]]


def test_linear_layers_before_a_whole_block_belong_to_the_block_before() -> None:
    def segment(name: str, layers: int, nonlinear: bool) -> Segment:
        found = tuple(f"{name}.{index}" for index in range(layers))
        return Segment(name=name, layers=found, consumers=found, norms=(), nonlinear=nonlinear)

    chain = [segment("a", 1, True), segment("b", 1, False), segment("c", 3, True), segment("d", 1, False)]
    assert group_segments(chain) == (range(0, 2), range(2, 3), range(3, 4))
    assert group_segments(chain[1:]) == (range(0, 1), range(1, 2), range(2, 3))


@pytest.mark.parametrize("net", [*NETS, "vit", "mobilenet"])
def test_every_layer_is_in_one_segment_and_nothing_gets_past_where_one_begins(net: str) -> None:
    model = tiny_vit() if net == "vit" else mobilenet_v2(num_classes=4).eval() if net == "mobilenet" else build(net)
    inputs = {"vit": images((1, 3, 16, 16)), "mobilenet": images((1, 3, 32, 32))}.get(net, example(1))
    segments = find_segments(model, inputs)
    consumers = [name for segment in segments for name in segment.consumers]
    assert sorted(consumers) == sorted(
        name for name, module in model.named_modules() if is_consumer(module) and "out_proj" not in name
    )
    assert len(segments) > 3
    for segment in segments:
        leaf = inputs.clone().requires_grad_()
        module = model.get_submodule(segment.name)
        handle = module.register_forward_pre_hook(lambda _, args: args[0].detach().requires_grad_().clone())
        model(leaf).sum().backward()
        handle.remove()
        assert leaf.grad is None


@pytest.mark.parametrize("net", [*NETS, "vit", "mobilenet"])
def test_a_replay_from_any_segment_to_any_other_equals_the_whole_pass(net: str) -> None:
    model = tiny_vit() if net == "vit" else mobilenet_v2(num_classes=4).eval() if net == "mobilenet" else build(net)
    shape = {"vit": (5, 3, 16, 16), "mobilenet": (5, 3, 32, 32)}.get(net, (5, 2, 8, 8))
    inputs = images(shape)
    before = copy.deepcopy(model.state_dict())
    replay = Replay(model, inputs)
    assert replay.segments == find_segments(model, inputs)
    number = len(replay.segments)
    with torch.no_grad():
        expected = model(inputs)
        middle = [replay.run(inputs, stop=place) for place in range(1, number)]
        for place, value in enumerate(middle, start=1):
            kept = value.clone()
            assert torch.equal(replay.run(value, start=place), expected)
            assert torch.equal(value, kept)
            if place + 1 < number:
                assert torch.equal(replay.run(value, start=place, stop=place + 1), middle[place])
        assert torch.equal(model(inputs), expected)
    assert count_hooks(model) == 0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())


def test_layers_before_the_segment_are_not_computed() -> None:
    model = build("plain")
    replay = Replay(model, example())
    place = [segment.name for segment in replay.segments].index("conv2")
    with torch.no_grad():
        value = replay.run(example(3), stop=place)
        expected = model(example(3))
        for module in (model.conv1, model.bn1):
            module.weight.fill_(float("nan"))
        assert torch.equal(replay.run(value, start=place), expected)


def test_gradients_reach_the_segments_that_run() -> None:
    model = build("plain")
    replay = Replay(model, example())
    value = replay.run(example(3), stop=2).detach()
    replay.run(value, start=2, stop=4).square().sum().backward()
    assert model.conv2.weight.grad is not None
    assert model.bn2.weight.grad is not None
    assert model.conv1.weight.grad is None
    assert model.fc.weight.grad is None


def test_tokens_enter_where_embeddings_meet() -> None:
    torch.manual_seed(0)
    model, tokens = Tokens().eval(), torch.tensor([[1, 2, 3, 4], [0, 6, 5, 2], [3, 3, 3, 3]])
    replay = Replay(model, tokens)
    assert [segment.name for segment in replay.segments] == ["", "norm", "head"]
    assert replay.segments[0].layers == ("words", "places")
    assert replay.segments[1].consumers == ("inner.0", "inner.2")
    value = replay.run(tokens, stop=1)
    assert torch.equal(replay.run(value, start=1), model(tokens))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("nothing", ["a", "b", "relu", "c", "d"]),
        ("in place", ["a", "b", "relu", "c", "d"]),
        ("own input", ["a", "b", "c", "relu", "d"]),
        ("mask", ["a", "c", "d"]),
        ("input", ["a", "d"]),
    ],
)
def test_segments_past_which_a_model_carries_something_unseen_are_dropped(kind: str, expected: list[str]) -> None:
    torch.manual_seed(1)
    model, inputs = Glue(kind).eval(), images((4, 6))
    replay = Replay(model, inputs)
    assert [segment.name for segment in replay.segments] == expected
    assert [name for segment in replay.segments for name in segment.layers] == ["a", "b", "c", "d"]
    with torch.no_grad():
        for place in range(1, len(expected)):
            value = replay.run(inputs, stop=place)
            kept = value.clone()
            assert torch.equal(replay.run(value, start=place), model(inputs))
            assert torch.equal(value, kept)


def test_a_model_that_cannot_be_cut_is_one_segment() -> None:
    model = Glue("nothing").eval()
    model.forward = lambda x: torch.from_numpy(model.d(x).detach().numpy())  # Nothing of it is differentiable.
    replay = Replay(model, images((3, 6)))
    assert [segment.name for segment in replay.segments] == [""]
    assert torch.equal(replay.run(images((3, 6))), model(images((3, 6))))


def test_an_error_leaves_no_hook_and_no_patch_behind() -> None:
    model = build("plain")
    replay = Replay(model, example())
    with pytest.raises(RuntimeError):
        replay.run(torch.zeros(2, 99, 8, 8), start=2)
    assert count_hooks(model) == 0
    assert not any("forward" in vars(module) for module in model.modules())
    assert model(example()).shape == (2, 3)


def test_a_pruned_copy_runs_by_the_segments_of_the_dense_model() -> None:
    dense = ResNetCifar(5, 3, (8, 8, 8)).eval()
    segments = find_segments(dense, images())
    graph = ChannelGraph(dense, images(), ["fc"])
    graph.remove({group.name: [0, 3] for group in graph.groups})
    replay = Replay(graph.model, images(), segments)
    assert replay.segments == segments
    place = [segment.name for segment in segments].index("layer2.1")
    value = replay.run(images((3, 3, 32, 32)), stop=place)
    assert value.shape == (3, 6, 16, 16)
    assert torch.equal(replay.run(value, start=place), graph.model(images((3, 3, 32, 32))))


def test_dropped_segments_become_part_of_those_before() -> None:
    segments = find_segments(build("plain"), example())
    merged = merge_segments(segments, {"bn1", "bn2", "fc"})
    assert [segment.name for segment in merged] == ["conv1", "conv2"]
    assert merged[1].layers == ("conv2", "bn2", "fc")
    assert merged[1].nonlinear


@pytest.mark.parametrize("name", sorted(NETS))
def test_a_caller_that_follows_no_gradients_gets_the_same_segments(name: str) -> None:
    net, inputs = build(name), example()
    expected = find_segments(net, inputs)
    with torch.no_grad():
        assert find_segments(net, inputs) == expected
    assert len(expected) > 1
